#!/usr/bin/env python3
"""Goodput of PD, mixed and self-chosen serving: the highest rate at which 90 % meet their targets.

    python scripts/bench_goodput.py [--cells 1P1D "mixed x 2" auto] [--seconds 40]
    python scripts/bench_goodput.py --cells auto --add          anew, in the file there is

Requests of Mooncake's conversation trace, scaled down in length to what two CPU cores can serve,
go to each cell in turn as an open loop. For every pair of targets the rate is searched at which
the share of requests within both reaches the goal. Each run has prompts that no run before had,
so caches know only what the run itself repeats. The cells:

    mixed x 2   two nodes that serve both phases, a core each
    1P1D        a prefill and a decode node, a core each
    auto        two nodes, a core each, that may do anything: the coordinator decides, by
                prediction, what to admit, which node computes a prompt and which roles the two
                have, and chunks beside outputs are as large as the targets of these allow

Targets are multiples of what a request of median lengths takes that is alone on the first of these
cells, so that they mean the same on a slow machine and on a fast one. With --add targets and the
rows of other cells are those of the file, which has to be of this machine and these options.

The workloads are the trace, and with --workloads shifting also one whose mix changes in mid-run:
its first half has four times the prompt, its second half four times the output.

A run sends for as long at any rate, so that no burst is taken for a rate that lasts: where first
tokens may take seconds, a queue that never stops growing looks like success for as long. At low
rates it sends for longer, or three long prompts in a row would decide. The first of it does not
count, in which nodes that may choose their roles take those of this load. It is given up as soon as
its goal is out of reach. Some 40 minutes for a workload; nothing else should run on the machine.
Where others share its caches and memory, --tries 2 gives a rate that failed another run, and the
better one counts: what they do can spoil a run and cannot make one better.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchlib.arguments import at_least_one
from benchlib.cells import resolve, running, say, spec_of, use_cores
from benchlib.environment import environment
from benchlib.report import options_of, show_table, write_json
from benchlib.traces import DEFAULT_DIR, find_trace

from pd.bench.endpoint import open_client, probe
from pd.bench.load import run_workload
from pd.bench.measure import Bench, Measured, search
from pd.bench.results import run_data, search_data, workload_data
from pd.bench.search import RateSearch
from pd.report.chart import Line, Panel, write_chart
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.spec import WorkloadSpec

CORES = 2
CELLS: dict[str, dict[str, Any]] = {
    "mixed x 2": {
        "prefill": 0, "decode": 0, "mixed": 2, "disaggregate": "never", "chunk_sizes": "fixed",
    },
    "1P1D": {"prefill": 1, "decode": 1, "disaggregate": "always", "chunk_sizes": "fixed"},
    "auto": {
        "prefill": 0, "decode": 0, "mixed": 2, "admission": "predicted",
        "balance": True, "balance_mixed": True,
    },
}  # fmt: skip
# TTFT and TPOT, as multiples of what they are of a request that is alone.
TARGETS = ("tight TPOT:30:2.25", "balanced:12:3.5", "tight TTFT:5:10")
COLOURS = ("#2563eb", "#dc2626", "#059669")
_TIMEOUT_S = 120.0
_SHIFT = 4.0


class Quiet:
    """Progress for a log: a line a run."""

    def begin(self, what: str, num_requests: int) -> None:
        pass

    def update(self, sent: int, ended: int) -> None:
        pass

    def end(self, measured: Measured) -> None:
        summary = measured.summary
        gave_up = "" if measured.stopped_s is None else f", given up at {measured.stopped_s:.0f} s"
        say(
            f"  {measured.rate:.3g} req/s: {summary.attainment:.1%} of {summary.num_requests} in "
            f"time{gave_up}; TTFT p90 {summary.ttft_s.p90:.2f} s, "
            f"TPOT p90 {summary.tpot_s.p90 * 1e3:.0f} ms"
        )


@dataclass(frozen=True)
class TraceSpec(WorkloadSpec):
    """Of the trace so much as `duration_s`, and at low rates at least so many requests after so
    many seconds."""

    least: int = 0
    after_s: float = 0.0

    def at_rate(self, rate: float) -> TraceSpec:
        assert self.duration_s is not None
        least_s = self.after_s + self.least / rate
        return replace(self, rate=rate, duration_s=max(self.duration_s, least_s))


class ShiftingSpec(TraceSpec):
    """A workload whose mix changes in mid-run."""

    def make(self) -> Workload:
        assert self.longest is not None
        return shifting(super().make(), self.longest)


def workloads(args: argparse.Namespace) -> dict[str, TraceSpec]:
    """What is sent, by name."""
    kinds = {"conversation": TraceSpec, "shifting": ShiftingSpec}
    return {
        name: kinds[name](
            file=find_trace(args.traces, "conversation"),
            scale_length=args.prompt_scale, scale_output=args.output_scale, longest=args.longest,
            duration_s=args.ramp + args.seconds, seed=args.seed, least=args.least,
            after_s=args.ramp,
        )
        for name in args.workloads
    }  # fmt: skip


def shifting(workload: Workload, longest: int) -> Workload:
    """The same requests without shared beginnings: long prompts first, long outputs then."""
    half = len(workload) // 2
    arrivals = []
    for number, each in enumerate(workload):
        early = number < half
        prompt = each.num_prompt * _SHIFT ** (0.5 if early else -0.5)
        output = each.num_output * _SHIFT ** (-0.5 if early else 0.5)
        num_output = min(max(1, round(output)), longest // 2)
        num_prompt = min(max(1, round(prompt)), longest - num_output)
        arrivals.append(replace(each, num_prompt=num_prompt, num_output=num_output, prefix=()))
    return Workload("shifting", arrivals)


@dataclass
class Retried(Bench):
    """Of up to `tries` runs at a rate the first that reaches the goal, or else the best."""

    tries: int = 1

    async def run(self, rate: float | None = None, *, goal: float | None = None) -> Measured:
        best = await super().run(rate, goal=goal)
        for _ in range(self.tries - 1):
            if goal is None or best.summary.attainment >= goal:
                break
            another = await super().run(rate, goal=goal)
            best = max(best, another, key=lambda each: each.summary.attainment)
        return best


class Targets(NamedTuple):
    """As multiples of what a request takes that is alone."""

    name: str
    ttft: float
    tpot: float

    @classmethod
    def parse(cls, text: str) -> Targets:
        """`NAME:TTFT:TPOT`"""
        try:
            name, ttft, tpot = text.rsplit(":", 2)
            return cls(name, float(ttft), float(tpot))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME:TTFT:TPOT") from None

    def of(self, alone: Alone) -> SLO:
        return SLO(self.ttft * alone.ttft_s, self.tpot * alone.tpot_s)


class Alone(NamedTuple):
    """What a request of median lengths takes that has the cell to itself."""

    num_prompt: int
    num_output: int
    ttft_s: float
    tpot_s: float


async def alone(
    url: str, vocab_size: int, spec: WorkloadSpec, rounds: int, skipped: int = 3
) -> Alone:
    """Medians of so many requests one after another, after some that do not count."""
    arrivals = list(spec.make())
    num_prompt = round(median(each.num_prompt for each in arrivals))
    num_output = round(median(each.num_output for each in arrivals))
    one = Workload("alone", [Arrival(0.0, num_prompt, num_output)])
    salt = random.SystemRandom().getrandbits(40)
    found = []
    async with open_client(url, _TIMEOUT_S) as http:
        endpoint = await probe(http, url, vocabulary=vocab_size)
        for number in range(skipped + rounds):
            outcome = (await run_workload(http, endpoint, one, salt=salt + number)).outcomes[0]
            if outcome.ttft_s is None or outcome.tpot_s is None:
                raise SystemExit(f"a request alone failed: {outcome.detail}")
            found.append((outcome.ttft_s, outcome.tpot_s))
    ttft_s, tpot_s = (median(each) for each in zip(*found[skipped:], strict=True))
    return Alone(num_prompt, num_output, ttft_s, tpot_s)


async def measure(
    name: str, url: str, vocab_size: int, specs: dict[str, TraceSpec],
    targets: Sequence[tuple[str, SLO]], args: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    """The best rate for every workload and pair of targets, on a running cell."""
    rows = []
    salt = random.SystemRandom().getrandbits(40)
    async with open_client(url, _TIMEOUT_S) as http:
        endpoint = await probe(http, url, vocabulary=vocab_size)
        for workload, spec in specs.items():
            for label, slo in targets:
                limits = f"TTFT {slo.ttft_s:.2f} s, TPOT {slo.tpot_s:.4f} s"
                say(f"{name}, {workload}, {label}: {limits}")
                bench = Retried(
                    http, endpoint, spec, slo, Quiet(), salt, args.warmup, args.ramp,
                    tries=args.tries,
                )  # fmt: skip
                salt += 1 << 20
                await bench.warm_up()
                plan = RateSearch(
                    args.start, goal=args.goal, tolerance=args.tolerance, repeats=args.repeats
                )
                runs = await search(bench, plan)
                best = plan.best
                say(f"  -> {best.rate:.3g} req/s" if best else "  -> no rate holds")
                rows.append({
                    "cell": name,
                    "workload": workload,
                    "sent": workload_data(runs[-1].workload),
                    "targets": {"name": label, "ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
                    **search_data(plan),
                    "runs": [run_data(each) for each in runs],
                })  # fmt: skip
    return rows


def picture(rows: Sequence[dict[str, Any]], path: Path, goal: float) -> None:
    """Attainment by rate: a panel for each workload and pair of targets, a line for each cell."""
    panels = []
    keys = dict.fromkeys((row["workload"], row["targets"]["name"]) for row in rows)
    names = list(dict.fromkeys(row["cell"] for row in rows))
    for workload, label in keys:
        lines = []
        for row in rows:
            if (row["workload"], row["targets"]["name"]) == (workload, label):
                points = sorted((each["rate"], 100 * each["attainment"]) for each in row["trials"])
                colour = COLOURS[names.index(row["cell"]) % len(COLOURS)]
                lines.append(Line(row["cell"], points, colour))
        rates = [x for line in lines for x, _ in line.points]
        ends = [(min(rates), 100 * goal), (max(rates), 100 * goal)]
        lines.append(Line("goal", ends, "#94a3b8", "4 3", dots=False))
        panels.append(
            Panel(
                f"{workload}, {label}", "requests per second", "% in time",
                lines=lines, log_x=False, y_top=100,
            )
        )  # fmt: skip
    write_chart(path, "Requests that meet both targets, two CPU cores", panels, columns=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--traces", type=Path, default=DEFAULT_DIR, help="folder of the traces")
    parser.add_argument(
        "--workloads", nargs="+", default=["conversation"], choices=("conversation", "shifting")
    )
    parser.add_argument("--prompt-scale", type=float, default=1 / 64)
    parser.add_argument("--output-scale", type=float, default=1 / 8)
    parser.add_argument("--longest", type=int, default=2000, help="tokens of a request, at most")
    parser.add_argument(
        "--ramp", type=float, default=10.0, help="seconds of sending that do not count, in each run"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="of sending, after those")
    parser.add_argument(
        "--least", type=int, default=40, help="requests that count of a run, at least"
    )
    parser.add_argument(
        "--targets", nargs="+", type=Targets.parse, default=[*map(Targets.parse, TARGETS)],
        metavar="NAME:TTFT:TPOT", help="multiples of what a request takes that is alone",
    )  # fmt: skip
    parser.add_argument("--start", type=float, default=1.0, help="requests a second tried first")
    parser.add_argument("--goal", type=float, default=0.9)
    parser.add_argument("--tolerance", type=float, default=0.08)
    parser.add_argument("--repeats", type=at_least_one, default=1, help="runs at each rate")
    parser.add_argument("--tries", type=at_least_one, default=1, help="of a rate that failed")
    parser.add_argument("--rounds", type=at_least_one, default=9, help="requests sent alone")
    parser.add_argument("--warmup", type=int, default=4, help="requests not counted")
    parser.add_argument("--pool-gib", type=float, default=0.0, help="KV pool beside the nodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/goodput.json"))
    parser.add_argument("--picture", type=Path, default=Path("benchmarks/goodput.svg"))
    parser.add_argument("--add", action="store_true", help="keep other cells' rows, and targets")
    args = parser.parse_args()
    use_cores(CORES)
    facts = environment()
    rows: list[dict[str, Any]] = []
    specs = workloads(args)
    base: Alone | None = None
    options = options_of(args, "picture", "add", "cells")
    options["targets"] = [":".join(map(str, each)) for each in args.targets]
    options["traces"] = args.traces.name
    if args.add:
        stored = json.loads(args.json.read_text())
        if stored["options"] != options:
            parser.error(f"{args.json} is of other options: {stored['options']}")
        base = Alone(**stored["alone"])
        rows = [row for row in stored["rows"] if row["cell"] not in args.cells]
    for name in args.cells:
        say(name)
        config = resolve(
            model=args.model, threads_per_node=1, pool_dram_gib=args.pool_gib, **CELLS[name]
        )
        with running(config) as cluster:
            vocab_size = spec_of(config).vocab_size
            if base is None:
                spec = next(iter(specs.values()))
                base = asyncio.run(alone(cluster.url, vocab_size, spec, args.rounds))
                say(f"alone: TTFT {base.ttft_s:.3f} s, TPOT {base.tpot_s * 1e3:.1f} ms")
            pairs = [(each.name, each.of(base)) for each in args.targets]
            rows += asyncio.run(measure(name, cluster.url, vocab_size, specs, pairs, args))
    assert base is not None
    show_table(
        f"Highest rate (requests/s) with {args.goal:.0%} of requests in time",
        ["", *(each.name for each in args.targets)],
        (
            [f"{workload}, {name}", *(
                f"{row['rate']:.3g}" if row["rate"] else "-" for row in rows
                if (row["workload"], row["cell"]) == (workload, name)
            )]
            for workload in specs
            for name in dict.fromkeys(row["cell"] for row in rows)
        ),
    )  # fmt: skip
    write_json(args.json, {
        "environment": facts, "options": options, "alone": base._asdict(), "rows": rows,
    })  # fmt: skip
    picture(rows, args.picture, args.goal)
    print(f"drawn in {args.picture}", flush=True)


if __name__ == "__main__":
    main()
