#!/usr/bin/env python3
"""Overload of a running cell: how fast it says no, what it still serves, and whether it grows.

    python scripts/bench_overload.py [--factors 2 5 10] [--seconds 15] --json FILE

One prefill and one decode node, a core each, on a small random model, with predicted admission.
The capacity is searched first: the highest rate at which 90 % of requests meet both targets. Then
requests come at multiples of it as an open loop. `answered` is the time from sending a request
that is rejected to the end of its answer, as the client sees it, and `server` what of that the
gateway says it took, from the request's last byte to the answer's first, in whole milliseconds;
generator, gateway and coordinator share the cores with the nodes. Memory is what is resident.

The more comes, the more there is to choose from, and a short prompt is in time where a long one is
not: goodput in requests rises with the load. `prompt tokens` are those of requests in time, per
second, which says whether the nodes do as much of use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from benchlib.cells import say, use_cores  # noqa: E402
from benchlib.environment import environment  # noqa: E402
from benchlib.processes import descendants, title  # noqa: E402
from benchlib.report import milliseconds, options_of, percentile, show_table, write_json  # noqa: E402
from benchlib.simulated import Window, count, figures, steady  # noqa: E402

from pd.bench.endpoint import Endpoint, open_client, probe  # noqa: E402
from pd.bench.load import run_workload, settle  # noqa: E402
from pd.bench.search import RateSearch  # noqa: E402
from pd.types import SLO  # noqa: E402
from pd.workload.lengths import Constant, Uniform  # noqa: E402

MODEL = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
PROMPTS, OUTPUTS = Uniform(256, 768), Constant(48)
WATCHED = ("gateway", "coordinator")
SAMPLE_S = 0.5
RAMP_S = 2.0
MIB = 2**20


class Memory:
    """Resident memory of the processes whose name has one of `WATCHED` in it, now and again."""

    def __init__(self) -> None:
        self._pids = {
            pid: name for pid in descendants(os.getpid())
            if (name := next((each for each in WATCHED if each in _title(pid).lower()), ""))
        }  # fmt: skip
        self.samples: dict[str, list[float]] = {name: [] for name in self._pids.values()}

    def sample(self) -> None:
        for pid, name in self._pids.items():
            self.samples[name].append(resident_mib(pid))

    async def watch(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_S)

    def taken(self) -> dict[str, list[float]]:
        """The samples so far, which are forgotten here."""
        taken, self.samples = self.samples, {name: [] for name in self.samples}
        return taken


def _title(pid: int) -> str:
    try:
        return title(pid)
    except OSError:
        return ""


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def growth_mib(samples: Sequence[float]) -> float:
    """By how much the mean of the last quarter is over that of the first."""
    quarter = max(1, len(samples) // 4)
    return sum(samples[-quarter:]) / quarter - sum(samples[:quarter]) / quarter


class Retries:
    """What rejections said of when to come again. A hook for a client."""

    def __init__(self) -> None:
        self.after_s: list[float] = []
        self.server_s: list[float] = []
        self.missing = 0

    async def __call__(self, response: httpx.Response) -> None:
        if response.status_code != 429:
            return
        self.server_s.append(float(response.headers.get("openai-processing-ms", 0)) / 1000)
        said = response.headers.get("retry-after")
        if said is None:
            self.missing += 1
        else:
            self.after_s.append(float(said))


async def load(
    http: httpx.AsyncClient, endpoint: Endpoint, slo: SLO, rate: float, length_s: float, salt: int
) -> dict[str, Any]:
    """One run at this rate."""
    retries = Retries()
    http.event_hooks = {"response": [retries]}
    workload = steady(rate, length_s, salt, PROMPTS, OUTPUTS)
    run = await run_workload(http, endpoint, workload, slo=slo, salt=salt)
    await settle(http, endpoint)
    window = Window(RAMP_S, max(RAMP_S + 1.0, workload.duration_s))
    counted = count(workload, run.outcomes, slo, window)
    answered = [
        each.end_s - each.sent_s for each in run.outcomes
        if each.status == "rejected" and each.sent_s is not None
    ]  # fmt: skip
    return {
        "rate": rate,
        **figures(counted),
        "errors": sum(each.status == "error" for each in run.outcomes),
        "late_p99_s": percentile([each.late_s for each in run.outcomes], 0.99),
        "answered_s": {
            "p50": percentile(answered, 0.5), "p99": percentile(answered, 0.99),
            "most": max(answered),
        } if answered else None,
        "server_s": {
            "p50": percentile(retries.server_s, 0.5), "p99": percentile(retries.server_s, 0.99),
            "most": max(retries.server_s),
        } if retries.server_s else None,
        "retry_after_s": {
            "p50": percentile(retries.after_s, 0.5), "most": max(retries.after_s),
        } if retries.after_s else None,
        "without_retry_after": retries.missing,
    }  # fmt: skip


async def capacity(
    http: httpx.AsyncClient, endpoint: Endpoint, slo: SLO, start: float, length_s: float
) -> tuple[float, list[dict[str, Any]]]:
    """The highest rate tried at which 90 % are in time, within a quarter, and the runs."""
    runs: list[dict[str, Any]] = []
    plan = RateSearch(start, goal=0.9, tolerance=0.25, repeats=1)
    while (rate := plan.next_rate()) is not None:
        row = await load(http, endpoint, slo, rate, length_s, 100 + len(runs))
        say(f"{rate:.2f} requests/s: {row['attainment']:.0%} in time")
        plan.add(rate, row["met"], row["arrived"])
        runs.append(row)
    if plan.best is None:
        raise SystemExit(f"no rate meets the targets {slo}: set later ones")
    return plan.best.rate, runs


async def measure(url: str, vocab_size: int, args: argparse.Namespace) -> dict[str, Any]:
    slo = SLO(args.ttft_ms / 1e3, args.tpot_ms / 1e3)
    rows = []
    async with open_client(url, 60.0) as http:
        endpoint = await probe(http, url, vocabulary=vocab_size)
        await load(http, endpoint, slo, 2.0, 4.0, 99)  # the cell measures itself
        best, searched = args.capacity, []
        if best is None:
            best, searched = await capacity(http, endpoint, slo, args.start, args.seconds / 2)
        memory = Memory()
        watcher = asyncio.create_task(memory.watch())
        try:
            for number, factor in enumerate([1.0, *args.factors]):
                row = await load(http, endpoint, slo, factor * best, args.seconds, number)
                samples = memory.taken()
                row["memory_mib"] = {
                    name: {"first": each[0], "most": max(each), "growth": growth_mib(each)}
                    for name, each in samples.items()
                }
                rows.append({"factor": factor, **row})
                say(f"{factor:g}x: goodput {row['goodput']:.2f}, answered {row['answered_s']}")
        finally:
            watcher.cancel()
    for name in ("goodput", "goodput_prompt_tokens"):
        peak = max(row[name] for row in [*rows, *searched])
        for row in rows:
            row[f"{name}_of_peak"] = row[name] / peak if peak else 0.0
    return {"capacity": best, "rows": rows, "searched": searched}


def show(rows: Sequence[dict[str, Any]]) -> None:
    show_table(
        "Overload of a running cell",
        ("load", "req/s", "goodput", "of peak", "prompt tokens", "of peak", "rejected",
         "answered p50 ms", "p99", "server p99",
         "TTFT p99 ms", "retry after", "gateway MiB", "coordinator MiB"),
        [
            (
                f"{row['factor']:g}x", f"{row['rate']:.1f}", f"{row['goodput']:.2f}",
                f"{row['goodput_of_peak']:.0%}", f"{row['goodput_prompt_tokens']:.0f}",
                f"{row['goodput_prompt_tokens_of_peak']:.0%}", f"{row['rejected_share']:.0%}",
                *(milliseconds(row["answered_s"][each]) if row["answered_s"] else "-"
                  for each in ("p50", "p99")),
                milliseconds(row["server_s"]["p99"]) if row["server_s"] else "-",
                milliseconds(row["ttft_s"]["p99"] or 0.0, 0),
                f"{row['retry_after_s']['p50']:g} s" if row["retry_after_s"] else "-",
                *(f"{row['memory_mib'][each]['first']:.0f} {row['memory_mib'][each]['growth']:+.1f}"
                  if each in row["memory_mib"] else "-" for each in WATCHED),
            )
            for row in rows
        ],
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--factors", type=float, nargs="+", default=[2.0, 5.0, 10.0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each overload")
    parser.add_argument("--margin", type=float, default=0.95, help="admission_margin of the cell")
    parser.add_argument("--capacity", type=float, help="requests a second, where it is known")
    parser.add_argument("--start", type=float, default=3.0, help="requests a second tried first")
    parser.add_argument("--ttft-ms", type=float, default=1500.0)
    parser.add_argument("--tpot-ms", type=float, default=100.0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "overload.json")
    args = parser.parse_args()
    from tiny_model import write_tiny_model

    from pd.cluster import Cluster
    from pd.config import Config
    from pd.engine.spec import ModelSpec

    use_cores(2)
    facts, begun = environment(), time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        model = write_tiny_model(Path(directory) / "model", **MODEL)
        config = Config.from_dict(
            None, model=str(model), port=0, prefill=1, decode=1, kv_cache_gib=0.5,
            threads_per_node=1, admission="predicted", admission_margin=args.margin,
            disaggregate="always",
        )  # fmt: skip
        vocab_size = ModelSpec.from_dir(str(model)).vocab_size
        with Cluster.start(config, lambda step: None) as cluster:
            found = asyncio.run(measure(cluster.url, vocab_size, args))
    show(found["rows"])
    report = {"environment": facts, "options": options_of(args), "model": MODEL}
    write_json(args.json, {**report, **found, "seconds": time.monotonic() - begun})
    return 0


if __name__ == "__main__":
    sys.exit(main())
