"""`pd simulate`: a workload through a cell that does not exist, by the code of those that do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd.cli.arguments import add_config_flags, config_flags
from pd.cli.cell import console, table
from pd.cli.workload import add_slo_flags, add_workload_flags, slo_of, workload_spec
from pd.errors import ConfigError
from pd.types import SLO

if TYPE_CHECKING:
    from pd.sim.build import Hardware
    from pd.sim.result import SimResult
    from pd.workload.outcome import Spread

# What of the configuration means something where there are no sockets and no tensors.
CONFIGURED = frozenset({
    "block_size", "kv_cache_gib", "prefix_cache", "max_num_batched_tokens", "max_num_seqs",
    "prefill_order", "aging_s", "fairness", "burst_tokens", "watermark", "prefill", "decode",
    "mixed", "heartbeat_s", "node_timeout_s", "recovery_timeout_s", "stand_in_s", "lease_s",
    "routing", "disaggregate", "admission", "admission_margin", "max_waiting_per_node",
    "pool_dram_gib", "pool_disk_gib", "fetch", "balance", "balance_mixed", "balance_high",
    "balance_window_s", "balance_patience_s", "balance_cooldown_s", "min_prefill", "min_decode",
})  # fmt: skip

DESCRIPTION = """\
Run a workload through a cell on a virtual clock. The coordinator, schedulers, caches and hand-offs
are those of 'pd serve'; how long steps and transfers take comes from a cost model ('pd profile'
makes one of this machine).

  pd simulate --cost model.json --workload trace.jsonl.gz --prefill 4 --decode 4
  pd simulate --cost model.json --rate 8 --prompt 2000 --output 200 --mixed 8 --slo-ttft-ms 500
  pd simulate --cost model.json --rate 4 --fail decode-0:kill:60:30 --events events.jsonl

The same arguments give the same figures, to the last digit.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "simulate",
        help="run a workload through a cell on a virtual clock",
        usage="pd simulate --cost MODEL [OPTION ...]",
        description=DESCRIPTION,
    )
    add_workload_flags(parser)
    add_slo_flags(parser)
    group = parser.add_argument_group("hardware", "What is there; links in GB/s, sizes in bytes.")
    group.add_argument(
        "--cost",
        required=True,
        metavar="MODEL",
        help="a cost model: a file, or a shipped one's name",
    )
    for role in ("prefill", "decode", "mixed"):
        group.add_argument(
            f"--{role}-cost", metavar="MODEL", help=f"of {role} nodes, where they are other ones"
        )
    group.add_argument(
        "--kv-bytes-per-token", type=float, metavar="N",
        help="bytes of KV that a token takes (default: what the cost model says)",
    )  # fmt: skip
    group.add_argument("--nodes-per-host", type=int, default=8, metavar="N", help="(default: 8)")
    group.add_argument(
        "--near-gbs", type=float, metavar="X",
        help="between nodes of one host (default: the cost model's path nccl, shm or tcp)",
    )  # fmt: skip
    group.add_argument(
        "--far-gbs", type=float, metavar="X",
        help="between hosts (default: the cost model's path rdma, tcp or nccl)",
    )  # fmt: skip
    group.add_argument(
        "--sharing", type=Path, metavar="FILE",
        help="what nodes of one host cost each other, as scripts/measure_sharing.py measures it "
        "(default: nothing)",
    )  # fmt: skip
    group.add_argument(
        "--jitter", type=float, default=0.0, metavar="X",
        help="standard deviation of a step's duration, as a share of it (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--fail", action="append", default=[], metavar="NODE:KIND:AT[:FOR[:FACTOR]]",
        help="at AT seconds kill a node, freeze it or slow it by FACTOR, for FOR seconds",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="a YAML file, as of 'pd serve'")
    add_config_flags(parser, CONFIGURED)
    parser.add_argument("--json", action="store_true", help="print everything known, as JSON")
    parser.add_argument(
        "--events", type=Path, metavar="FILE", help="write what happens as lines of JSON"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.cli.load import load_config
    from pd.sim.build import cell_spec, parse_failure
    from pd.sim.simulate import simulate

    given = config_flags(args)
    given.pop("seed", None)  # the workload's, not that of dummy weights
    if args.config is None:
        given = {"pool_dram_gib": 0, **given}
    for name in ("ttft_ms", "tpot_ms"):  # what the cell aims at is what it is measured by
        if getattr(args, f"slo_{name}") is not None:
            given[name] = getattr(args, f"slo_{name}")
    if given.get("pool_disk_gib"):
        given.setdefault("pool_disk_dir", "/simulated")
    config = load_config(args.config, given)
    spec = cell_spec(
        config, _hardware(args), failures=[parse_failure(text) for text in args.fail],
        jitter=args.jitter,
    )  # fmt: skip
    workload, slo = workload_spec(args).make(), slo_of(args)
    with ExitStack() as stack:
        log = _EventLog(args.events, stack) if args.events else None
        bar = stack.enter_context(_Bar(len(workload)))
        result = simulate(
            spec, workload, seed=args.seed, on_note=None if log is None else log.note,
            on_progress=bar.update,
        )  # fmt: skip
    if args.json:
        about = {
            "workload": {"name": workload.name, "requests": len(workload), "rate": workload.rate},
            "cell": {"nodes": spec.counts, "seed": args.seed, "config": config.to_dict()},
        }
        print(json.dumps({**about, **result.to_dict(slo)}, indent=1))
    else:
        _show(result, slo)
    return 0


def _hardware(args: argparse.Namespace) -> Hardware:
    from pd.cost import library
    from pd.cost.model import Link
    from pd.cost.sharing import Sharing
    from pd.sim.build import Hardware

    def link(flag: str, gbs: float | None, latency_s: float) -> Link | None:
        if gbs is not None and not gbs > 0:
            raise ConfigError(f"{flag} must be above 0, not {gbs:g}")
        return None if gbs is None else Link(latency_s, gbs * 1e9)

    costs = {role: getattr(args, f"{role}_cost") for role in ("prefill", "decode", "mixed")}
    return Hardware(
        library.find(args.cost),
        {role: library.find(name) for role, name in costs.items() if name is not None},  # type: ignore[misc]
        args.kv_bytes_per_token,
        args.nodes_per_host,
        far=link("--far-gbs", args.far_gbs, 50e-6),
        near=link("--near-gbs", args.near_gbs, 20e-6),
        sharing=None if args.sharing is None else Sharing.load(args.sharing),
    )


class _EventLog:
    """Lines of JSON, one for each thing that happened."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        try:
            self._file = stack.enter_context(path.open("w", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--events {path}: {error.strerror}") from None

    def note(self, now: float, kind: str, about: str, more: Mapping[str, Any]) -> None:
        row = {"t": round(now, 6), "event": kind, "id": about, **more}
        self._file.write(json.dumps(row) + "\n")


class _Bar:
    """How many requests have ended, on a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        screen = Console(file=sys.stderr)
        self._bars = Progress(
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=screen, transient=True,
            disable=not screen.is_terminal,
        )  # fmt: skip
        self._every = max(1, total // 200)
        self._task = self._bars.add_task("simulate", total=total)

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, ended: int) -> None:
        if ended % self._every == 0:
            self._bars.update(self._task, completed=ended)


def _show(result: SimResult, slo: SLO | None) -> None:
    summary = result.summary(slo)
    screen = console()
    print(
        f"{summary.num_requests} requests in {summary.duration_s:.1f} s: {summary.num_ok} served, "
        f"{summary.num_rejected} rejected, {summary.num_errors} failed"
    )
    if slo is not None:
        print(f"attainment {summary.attainment:.1%}, goodput {summary.goodput:.3f} requests/s")
    latencies = table("", "mean", "p50", "p90", "p99", text=1)
    latencies.add_row("TTFT", *_milliseconds(summary.ttft_s))
    latencies.add_row("TPOT", *_milliseconds(summary.tpot_s))
    screen.print(latencies)
    hits = result.hits
    print(
        f"prompt tokens from caches {hits.rate:.1%}, of all {hits.fetched:.1%} fetched; found "
        f"on the node {hits.found_local:.1%}, on others {hits.found_remote:.1%}, in pools "
        f"{hits.found_dram:.1%}, on disk {hits.found_disk:.1%}"
    )
    busy = ", ".join(f"{role} {share:.1%}" for role, share in result.busy().items())
    print(f"computing: {busy}; KV moved {result.transferred_bytes / 1e9:.1f} GB")


def _milliseconds(spread: Spread) -> list[str]:
    values = (spread.mean, spread.p50, spread.p90, spread.p99)
    return ["-" if value != value else f"{value * 1e3:.1f} ms" for value in values]
