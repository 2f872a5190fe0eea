"""What was measured beside what was simulated: errors, targets, and which cell is the better one.

Pure. Times in seconds; an error is simulated / measured - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from pd.workload.outcome import Outcome, Spread

METRICS = ("ttft_s", "tpot_s")
STATISTICS = ("mean", "p50", "p99")
TARGETS = {"ttft_s": 0.15, "tpot_s": 0.10}
LEVEL = 0.05  # cells that differ by less in a figure are not told apart by it


@dataclass(frozen=True, slots=True)
class Times:
    """One request: when it arrived, what it asked for and how long that took."""

    time_s: float
    num_prompt: int
    num_output: int
    ttft_s: float | None
    tpot_s: float | None
    late_s: float = 0.0

    @classmethod
    def of(cls, outcome: Outcome) -> Times:
        arrival = outcome.arrival
        return cls(
            arrival.time_s, arrival.num_prompt, arrival.num_output, outcome.ttft_s,
            outcome.tpot_s, outcome.late_s,
        )  # fmt: skip


def spreads(requests: Sequence[Times]) -> dict[str, Spread]:
    return {
        metric: Spread.of(
            value for each in requests if (value := getattr(each, metric)) is not None
        )
        for metric in METRICS
    }


def compare(measured: Sequence[Times], simulated: Sequence[Times]) -> dict[str, dict[str, Any]]:
    """{metric: {statistic: {measured_s, simulated_s, error}}}. ValueError if the two are not of
    the same requests."""
    asked = [
        [(each.num_prompt, each.num_output) for each in sorted(run, key=lambda each: each.time_s)]
        for run in (measured, simulated)
    ]
    if asked[0] != asked[1]:
        raise ValueError(
            f"{len(measured)} measured and {len(simulated)} simulated requests are not the same "
            "ones: make both from the same workload"
        )
    real, guessed = spreads(measured), spreads(simulated)
    return {
        metric: {
            name: _pair(getattr(real[metric], name), getattr(guessed[metric], name))
            for name in STATISTICS
        }
        for metric in METRICS
    }


def _pair(measured_s: float, simulated_s: float) -> dict[str, float]:
    return {
        "measured_s": measured_s,
        "simulated_s": simulated_s,
        "error": simulated_s / measured_s - 1 if measured_s > 0 else float("nan"),
    }


def within(row: Mapping[str, Any]) -> dict[str, int]:
    """How many of a comparison's figures are within their target, by metric."""
    return {
        metric: sum(abs(row[metric][name]["error"]) <= TARGETS[metric] for name in STATISTICS)
        for metric in METRICS
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two cells is better by one figure of one workload. `measured` and `simulated` are
    the first's value over the second's."""

    workload: str
    figure: str
    first: str
    second: str
    measured: float
    simulated: float

    @property
    def level(self) -> bool:
        return abs(self.measured - 1) < LEVEL

    @property
    def agrees(self) -> bool:
        return (self.measured < 1) == (self.simulated < 1)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Every pair of cells by every figure of every workload that both served."""
    for a, b in combinations(rows, 2):
        if a["workload"] != b["workload"] or a["cell"] == b["cell"]:
            continue
        if not a["below"]:  # sent to each at a rate of its own
            continue
        for metric in METRICS:
            for name in STATISTICS:
                first, second = a["figures"][metric][name], b["figures"][metric][name]
                if second["measured_s"] > 0 and second["simulated_s"] > 0:
                    yield Verdict(
                        a["workload"], f"{metric.removesuffix('_s').upper()} {name}", a["cell"],
                        b["cell"], first["measured_s"] / second["measured_s"],
                        first["simulated_s"] / second["simulated_s"],
                    )  # fmt: skip


def ranking(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often simulation and machine agree on the better cell, where the machine tells them
    apart, and where they do not."""
    apart = [each for each in verdicts(rows) if not each.level]
    wrong = [each for each in apart if not each.agrees]
    return {
        "compared": len(apart),
        "agree": len(apart) - len(wrong),
        "level": sum(each.level for each in verdicts(rows)),
        "wrong": [asdict(each) for each in wrong],
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and largest size of the errors, and the share within target: of workloads below
    saturation, and near it."""
    found: dict[str, Any] = {}
    for label, below in (("below saturation", True), ("near saturation", False)):
        those = [row for row in rows if row["below"] is below]
        for metric in METRICS:
            errors = {
                name: [abs(row["figures"][metric][name]["error"]) for row in those]
                for name in STATISTICS
            }
            every = [error for each in errors.values() for error in each]
            if every:
                found.setdefault(label, {})[metric] = {
                    **{f"mean_error_of_{name}": sum(e) / len(e) for name, e in errors.items()},
                    "largest_error": max(every),
                    "within_target": sum(error <= TARGETS[metric] for error in every),
                    "figures": len(every),
                    "target": TARGETS[metric],
                }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and a line for each cell and workload: measured ms and error of each figure."""
    headings = ["workload", "cell"]
    for metric in METRICS:
        short = metric.removesuffix("_s").upper()
        headings += [f"{short} {name}, ms" for name in STATISTICS]
    lines = []
    for row in rows:
        line = [row["workload"], row["cell"]]
        for metric in METRICS:
            for name in STATISTICS:
                pair = row["figures"][metric][name]
                line.append(f"{pair['measured_s'] * 1e3:,.0f} {pair['error']:+.0%}")
        lines.append(line)
    return headings, lines
