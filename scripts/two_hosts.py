#!/usr/bin/env python3
"""A cell across two hosts, and what happens when their network fails. Needs root, and Linux.

    python scripts/two_hosts.py
    python scripts/two_hosts.py --model smollm2-135m --out benchmarks/two_hosts.json

Makes two hosts of network, process and mount namespaces, with addresses of their own and a
link between them; starts Ray on both, prefill on the first host, decode on the second, and a
pool on each. Every answer is compared with what the same model gave on one host. Then the
link gets worse: 50 ms away, with stalls and connections reset, and cut in the middle of a
hand-off, for less time than makes a node count as lost, and for more.

Blocks must go through shared memory within a host and through encrypted ZeroMQ between them,
and none of what passed may be readable. Every request must end with the right tokens or with
one clear error, the next one must be served, and nothing may be left behind: no block, no
reservation, no shared memory. Exit status 1 if anything of this is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import percentile, show_table, write_json  # noqa: E402
from hostlib.hosts import Host, Hosts, two_hosts, why_not  # noqa: E402
from hostlib.secrecy import readable, segments, shared_pieces  # noqa: E402
from hostlib.serving import (  # noqa: E402
    FIRST_FREE_PORT,
    Served,
    node_logs,
    serve,
    serve_across,
    ways_of_blocks,
    wrong_ways,
)
from hostlib.trials import Outcome, Trial, make_bodies  # noqa: E402
from live_cell import LiveCell  # noqa: E402

PIECES = 200  # of KV, looked for in what passed
MIB = 1 << 20


def main() -> int:
    args = _arguments()
    if reason := why_not():
        print(f"two_hosts: {reason}", file=sys.stderr)
        return 2
    report = environment()
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as directory:
        logs = args.logs or Path(directory)
        logs.mkdir(parents=True, exist_ok=True)
        with two_hosts() as hosts:
            run = Run(args, hosts, logs)
            run.on_one_host()
            run.on_two_hosts()
    show_table(f"{args.model} on two hosts", *_table(run.outcomes))
    problems = [f"{each.name}: {problem}" for each in run.outcomes for problem in each.problems]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if args.out:
        trials = [outcome.as_json() for outcome in run.outcomes]
        options = {**run.options, "model": args.model}
        write_json(args.out, {**report, "options": options, **run.facts, "trials": trials})
    return 1 if problems else 0


class Run:
    """The trials, first their right answers on one host, then on two."""

    def __init__(self, args: argparse.Namespace, hosts: Hosts, logs: Path) -> None:
        self.args, self.hosts, self.logs = args, hosts, logs
        self.outcomes: list[Outcome] = []
        self.facts: dict[str, Any] = {}
        model = args.model
        if model == "tiny":
            from tiny_model import write_tiny_model

            model = str(
                write_tiny_model(
                    logs / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=6
                )
            )
        self.options: dict[str, Any] = {
            "model": model, "threads_per_node": 1, "kv_cache_gib": args.kv_cache_gib,
            "pool_dram_gib": args.kv_cache_gib / 2, "node_timeout_s": args.node_timeout_s,
            "lease_s": args.node_timeout_s, "drain_s": 1.0,
        }  # fmt: skip
        names = ("plain", "delay", "stalls and resets", "short cut", "long cut")
        # The last one of each trial is for when the fault is over.
        self.bodies = {
            name: self._bodies(number, args.requests + 1) for number, name in enumerate(names)
        }
        self.expected: dict[str, list[list[int]]] = {}

    def on_one_host(self) -> None:
        _say("the same model on one host")
        host = self.hosts.first
        with (
            serve(host, self.logs, "one-host", self.options) as served,
            _client(host, served) as cell,
        ):
            for name, bodies in self.bodies.items():
                self.expected[name] = [cell.tokens(**body)[0] for body in bodies]

    def on_two_hosts(self) -> None:
        _say("two hosts")
        with (
            serve_across(self.hosts, self.logs, self.options) as served,
            _client(self.hosts.first, served) as cell,
        ):
            self.cell = cell
            args = self.args
            self._trial("plain", "plain")
            self._check_ways()
            delayed = {"delay_s": args.delay_ms / 1e3, "jitter_s": args.delay_ms / 1e4}
            with self._recorded() as recording:
                self._trial("delay", f"{args.delay_ms:g} ms delay", delayed)
                self._check_secrecy(recording)
            self._trial(
                "stalls and resets", "stalls and resets",
                {"bytes_per_s": args.mib_per_s * MIB, "stall_every_s": 2.0, "stall_s": 1.0,
                 "reset_every_s": 0.5, "reset_ports": FIRST_FREE_PORT, "seed": args.seed},
            )  # fmt: skip
            slow = {"bytes_per_s": args.mib_per_s * MIB}
            short_s = args.node_timeout_s / 2
            self._trial("short cut", f"cut for {short_s:g} s", slow, short_s)
            self._trial("long cut", f"cut for {args.cut_s:g} s", slow, args.cut_s)
            for host in self.hosts.all:
                (self.logs / f"nodes-{host.name}.log").write_text(node_logs(host))

    def _trial(
        self, key: str, name: str, faults: dict[str, Any] | None = None, cut_s: float = 0.0
    ) -> None:
        _say(name)
        link = self.hosts.link
        trial = Trial(name, self.cell, self.bodies[key], self.expected[key])
        before = link.state()
        if faults is not None:
            link.faults(**faults)
            # Connections that were opened over another link need a while to learn this one.
            self.cell.stream(self._bodies(100 + len(self.outcomes), 4))
        if cut_s:
            # In the middle of the first hand-off, by what it moves.
            link.cut_after(int(self.args.mib_per_s * MIB / 4), cut_s)
        trial.run(self.args.at_once)
        state = link.state()
        if cut_s and state.get("cuts", 0) == before.get("cuts", 0):
            trial.outcome.problems.append("nothing was cut: too little was moved")
        time.sleep(state["cut_left_s"])
        link.plain()
        trial.recover()
        counted = {name: count - before.get(name, 0) for name, count in state.items()}
        trial.outcome.link = {name: count for name, count in counted.items() if count}
        for host in self.hosts.all:
            if (found := len(segments(host))) != 2:  # of a node and a pool
                trial.outcome.problems.append(f"{found} shared segments on {host.name}, not 2")
        self.outcomes.append(trial.outcome)

    def _bodies(self, number: int, count: int) -> list[Any]:
        args = self.args
        lengths = args.chars // 2, args.chars
        return make_bodies(args.seed + number, count, lengths, args.max_tokens)

    def _check_ways(self) -> None:
        """Between the hosts over TCP, within one through shared memory."""
        homes = {row["id"]: row["host"] for row in self.cell.status()["nodes"]}
        ways = ways_of_blocks(self.hosts)
        self.facts["ways_of_blocks"] = {f"{a} to {b}": way for (a, b), way in ways.items()}
        self.outcomes[-1].problems += wrong_ways(ways, homes)

    @contextmanager
    def _recorded(self) -> Iterator[Path]:
        """Everything that passes, in a file that does not stay."""
        path = self.logs / "passed"
        self.hosts.link.record(path)
        try:
            yield path
        finally:
            path.unlink()

    def _check_secrecy(self, recording: Path) -> None:
        self.hosts.link.record(None)
        pieces = shared_pieces(self.hosts.first, self.hosts.second, PIECES)
        seen = readable(recording, pieces)
        self.facts["secrecy"] = {
            "recorded_bytes": recording.stat().st_size,
            "pieces_of_kv_on_both_hosts": len(pieces),
            "readable_on_the_way": len(seen),
        }
        if len(pieces) < PIECES:
            self.outcomes[-1].problems.append(f"only {len(pieces)} pieces of moved KV found")
        self.outcomes[-1].problems += [f"readable on the way: {each}" for each in seen]


@contextmanager
def _client(host: Host, served: Served) -> Iterator[LiveCell]:
    with host.network():
        cell = LiveCell(served)
        try:
            yield cell
        finally:
            cell.http.close()


def _table(outcomes: list[Outcome]) -> tuple[list[str], list[list[str]]]:
    headings = [
        "link", "requests", "right", "resumed", "clear errors", "TTFT p50 / max (s)",
        "longest pause (s)", "served again (s)", "whole again (s)", "new processes",
    ]  # fmt: skip
    rows = [
        [
            each.name, str(each.requests), str(each.right), str(each.resumed),
            str(each.clear_errors),
            f"{percentile(each.ttft_s, 0.5):.2f} / {max(each.ttft_s, default=float('nan')):.2f}",
            f"{each.longest_gap_s:.1f}", f"{each.served_again_s:.1f}", f"{each.whole_again_s:.1f}",
            " ".join(each.replaced) or "none",
        ]
        for each in outcomes
    ]  # fmt: skip
    return headings, rows


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--model", default="tiny", help="tiny (random), smollm2-135m, or a directory"
    )
    parser.add_argument("--requests", type=int, default=16, help="of each trial")
    parser.add_argument("--at-once", type=int, default=4, help="requests in flight")
    parser.add_argument("--chars", type=int, default=2400, help="longest prompt, in characters")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=50.0, help="each way")
    parser.add_argument(
        "--mib-per-s", type=float, default=8.0, help="of the link, where it is slow"
    )
    parser.add_argument("--cut-s", type=float, default=10.0, help="length of the long cut")
    parser.add_argument("--node-timeout-s", type=float, default=6.0)
    parser.add_argument("--kv-cache-gib", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--logs", type=Path, help="a directory to keep the logs in")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
