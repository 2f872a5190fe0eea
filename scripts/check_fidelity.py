#!/usr/bin/env python3
"""Ten workloads on this machine and in the simulator: errors of TTFT and TPOT, and the ranking.

    python scripts/check_fidelity.py                        serve, simulate, compare: 10 minutes
    python scripts/check_fidelity.py --cells 1P1D           one cell; others stay in the file
    python scripts/check_fidelity.py --simulate-only        measured figures as they are in the file

Each workload goes to two live cells as an open loop, a prefill and a decode node and two mixed
ones, a core and a thread a node, and to the same cells in the simulator with the cost model that
`pd profile` measured. Arrivals, lengths and what prompts share are the same. Nothing in the
simulator is fitted to these runs: what nodes on one host cost each other is measured before by
scripts/measure_sharing.py, what the other processes take by scripts/bench_token_path.py, and what
HTTP adds to a TTFT by short requests on the idle cell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchlib.cells import node_pids, resolve, running, say, spec_of, use_cores
from benchlib.environment import environment
from benchlib.processes import CpuMeter
from benchlib.report import options_of, show_table, write_json
from benchlib.traces import DEFAULT_DIR
from fidelity import stages
from fidelity.agreement import STATISTICS, Times, compare, ranking, spreads, summary, table, within
from fidelity.loads import Load, chosen, loads
from fidelity.overheads import Overheads
from fidelity.replay import alone, front_s, predict, serve, warm_up

from pd.bench.endpoint import open_client, probe
from pd.bench.results import workload_data
from pd.cluster import Cluster
from pd.config import Config
from pd.cost import library
from pd.cost.model import CostModel
from pd.cost.sharing import Sharing
from pd.report.chart import Line, Panel, write_chart
from pd.sim.build import KV_KEY, Hardware, cell_spec
from pd.sim.spec import CellSpec
from pd.workload.arrival import Workload

CORES = 2
KV_GIB = 0.4  # a node: enough for every workload, and soon filled once
CELLS: dict[str, dict[str, Any]] = {
    "1P1D": {"prefill": 1, "decode": 1, "disaggregate": "always"},
    "mixed x 2": {"prefill": 0, "decode": 0, "mixed": 2, "disaggregate": "never"},
}
# Of mean and p99.
COLOURS = {"1P1D": ("#2563eb", "#93c5fd"), "mixed x 2": ("#dc2626", "#fca5a5")}
COST = "smollm2-135m-cpu-1-thread"
_TIMEOUT_S = 120.0
_NICE = -15  # of everything that is measured


def configuration(model: str, cell: str) -> Config:
    return resolve(
        model=model, threads_per_node=1, pin_cpus=True, pool_dram_gib=0, kv_cache_gib=KV_GIB,
        **CELLS[cell],
    )  # fmt: skip


def simulated(
    config: Config,
    cost: CostModel,
    sharing: Sharing,
    overheads: Overheads,
    workload: Workload,
) -> CellSpec:
    """The cell under this workload: what else takes the cores hangs on its rate of tokens."""
    decoding = config.cluster.decode + config.cluster.mixed
    seconds = max(workload.duration_s, 1.0)
    background = overheads.background(
        decoding / cost.linear(1), workload.num_output_tokens / seconds
    )
    hardware = Hardware(overheads.on(cost), sharing=replace(sharing, background=background))
    return cell_spec(config, hardware)


def warming(config: Config, cost: CostModel) -> Workload:
    kv_bytes = config.cache.kv_bytes("cpu")
    assert kv_bytes is not None
    kv_tokens = kv_bytes // int(cost.about[KV_KEY])
    return warm_up(kv_tokens, config.cluster.prefill + config.cluster.mixed)


async def measure(
    cluster: Cluster, config: Config, warm: Workload, workloads: Mapping[str, Workload]
) -> dict[str, Any]:
    """{workload: {requests, alone, cpu_s}} of the running cell: `alone` are short requests on the
    idle cell before."""
    found = {}
    salt = random.SystemRandom().getrandbits(40)
    async with open_client(cluster.url, _TIMEOUT_S) as http:
        endpoint = await probe(http, cluster.url, vocabulary=spec_of(config).vocab_size)
        await serve(http, endpoint, warm, salt)
        before = [asdict(each) for each in await alone(http, endpoint, salt + 1)]
        for name, workload in workloads.items():
            salt += 1 << 20
            meter = CpuMeter(os.getpid(), node_pids(cluster))
            meter.start()
            began = time.monotonic()
            counted = await stages.read(http)
            requests = await serve(http, endpoint, workload, salt)
            cpu_s = meter.stop()
            found[name] = {
                "requests": [asdict(each) for each in requests], "alone": before, "cpu_s": cpu_s,
                "wall_s": time.monotonic() - began,
                "stages_s": stages.between(counted, await stages.read(http), requests),
            }  # fmt: skip
            say(f"  {name}: {brief(requests)}")
    return found


def come_first() -> None:
    """Before what else runs on this machine, so that it takes no time of a step."""
    try:
        os.nice(_NICE)
    except PermissionError:
        say("not allowed to run before other processes: leave the machine alone meanwhile")


def brief(requests: Sequence[Times]) -> str:
    ttft, tpot = (spread.mean for spread in spreads(requests).values())
    late = max(each.late_s for each in requests)
    return (
        f"{len(requests)} requests, TTFT {ttft * 1e3:.0f} ms, TPOT {tpot * 1e3:.1f} ms, "
        f"sent {late * 1e3:.0f} ms late at most"
    )


def compared(
    cell: str,
    load: Load,
    workload: Workload,
    warm: Workload,
    measured: Mapping[str, Any],
    spec: CellSpec,
) -> dict[str, Any]:
    """One workload in one cell: what was sent, what came of it, and what the simulator says."""
    real = [Times(**each) for each in measured["requests"]]
    overhead_s = front_s(spec, [Times(**each) for each in measured["alone"]])
    spent: dict[str, float] = {}
    guessed = predict(spec, workload, warm, overhead_s, spent)
    figures = compare(real, guessed)
    return {
        "cell": cell,
        "workload": load.name,
        "below": load.below,
        "sent": {**workload_data(workload), "share_of_capacity": load.share},
        "front_s": overhead_s,
        "background": spec.sharing.background if spec.sharing else 0.0,
        "figures": figures,
        "within_target": within(figures),
        "measured": dict(measured),
        "simulated": [asdict(each) for each in guessed],
        "simulated_stages_s": spent,
    }


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Simulated over measured: every workload's mean and p99, which are at 1 where they agree."""
    panels = []
    for title, metric in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")):
        lines = []
        for cell, colours in COLOURS.items():
            for name, colour in zip(("mean", "p99"), colours, strict=True):
                pairs = [row["figures"][metric][name] for row in rows if row["cell"] == cell]
                # A line a point: what is drawn between two workloads would mean nothing.
                lines += [
                    Line(f"{cell}, {name}", [(1e3 * each["measured_s"], 1 + each["error"])], colour)
                    for each in pairs
                ]
        values = [x for line in lines for x, _ in line.points]
        ends = [(min(values), 1.0), (max(values), 1.0)]
        lines.append(Line("as measured", ends, "#94a3b8", "4 3", dots=False))
        panels.append(
            Panel(
                f"{title} of ten workloads", "measured, ms", "simulated / measured", lines=lines,
                y_top=2.0,
            )
        )  # fmt: skip
    write_chart(path, "Two CPU cores: the machine and the simulator", panels)


def stored(path: Path) -> dict[str, Any]:
    """{cell: {workload: measured}} of an earlier run's file, for cells that are not run now."""
    found: dict[str, Any] = {}
    if path.is_file():
        for row in json.loads(path.read_text())["rows"]:
            found.setdefault(row["cell"], {})[row["workload"]] = row["measured"]
    return found


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    headings, lines = table(rows)
    show_table("Measured, and the simulator's error", headings, lines)
    for label, metrics in summary(rows).items():
        for metric, each in metrics.items():
            errors = ", ".join(f"{name} {each[f'mean_error_of_{name}']:.1%}" for name in STATISTICS)
            print(
                f"{label}, {metric.removesuffix('_s').upper()}: mean error of {errors}; "
                f"{each['within_target']} of {each['figures']} within {each['target']:.0%}"
            )
    ranks = ranking(rows)
    print(f"the better cell: {ranks['agree']} of {ranks['compared']} agree, {ranks['level']} level")
    for each in ranks["wrong"]:
        print(
            f"  {each['workload']}, {each['figure']}: {each['first']} / {each['second']} measured "
            f"{each['measured']:.2f}, simulated {each['simulated']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cost", default=COST, help="cost model of a node of one thread")
    parser.add_argument("--sharing", type=Path, default=Path("benchmarks/sharing.json"))
    parser.add_argument("--token-path", type=Path, default=Path("benchmarks/token_path.json"))
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--workloads", nargs="+", metavar="BEGINNING", help="measure these only")
    parser.add_argument("--traces", type=Path, default=DEFAULT_DIR, help="folder of the traces")
    parser.add_argument("--seconds", type=float, default=18.0, help="of arrivals, each run")
    parser.add_argument("--simulate-only", action="store_true", help="measure nothing anew")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/fidelity.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/fidelity.svg"))
    args = parser.parse_args()
    use_cores(CORES)
    cost = library.find(args.cost)
    known = loads(args.traces)
    workloads = {
        cell: {each.name: each.make(cost, args.seconds, options.get("mixed", 0)) for each in known}
        for cell, options in CELLS.items()
    }
    names = [each.name for each in chosen(args.workloads, known)]
    about = environment()
    if args.simulate_only and args.json.is_file():  # that of the measured figures
        about = json.loads(args.json.read_text()).get("environment", about)
    if not args.simulate_only:
        come_first()
    measured = stored(args.json)
    configs = {cell: configuration(args.model, cell) for cell in CELLS}
    for cell in () if args.simulate_only else args.cells:
        say(cell)
        with running(configs[cell]) as cluster:
            fresh = asyncio.run(
                measure(
                    cluster,
                    configs[cell],
                    warming(configs[cell], cost),
                    {name: workloads[cell][name] for name in names},
                )
            )
            measured.setdefault(cell, {}).update(fresh)
    sharing, overheads = Sharing.load(args.sharing), Overheads.load(args.token_path)
    rows = [
        compared(
            cell, load, workloads[cell][load.name], warming(configs[cell], cost),
            measured[cell][load.name],
            simulated(
                configs[cell], cost, sharing, overheads, workloads[cell][load.name],
            ),
        )
        for load in known
        for cell in CELLS
        if load.name in measured.get(cell, {})
    ]  # fmt: skip
    if not rows:
        raise SystemExit(f"{args.json} has no measured figures of these cells: run without "
                         "--simulate-only first")  # fmt: skip
    show(rows)
    options = options_of(args, "picture", "sharing", "token_path", "traces")
    write_json(args.json, {
        "environment": about, "options": options, "sharing": asdict(sharing),
        "overheads": asdict(overheads),
        "summary": summary(rows), "ranking": ranking(rows), "rows": rows,
    })  # fmt: skip
    picture(rows, args.picture)
    print(f"drawn in {args.picture}", flush=True)


if __name__ == "__main__":
    main()
