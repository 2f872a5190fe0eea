#!/usr/bin/env python3
"""Kill, stop, pause, slow down and cut off what a cell is made of, while clients ask. Needs root.

    python scripts/chaos.py --seed 1 --json benchmarks/chaos.json
    python scripts/chaos.py --alone --faults 25 --requests 0 --json failures.json

Two hosts of namespaces (as scripts/two_hosts.py has them), each with a prefill node, a decode node
and a pool; the first one also has the coordinator and two gateways. A small random model. Faults
come in an order that follows from the seed: to every kind of process, to the second host's Ray,
which is started again as a service would be, and to the link between the hosts. `--alone` waits
until the cell is whole before each, and says what clients saw of it.

Every answer is compared with what the undisturbed cell gave. Exit status 1 if one has other tokens,
fails or does not end, unless its connection was lost when a gateway died; and if anything is held
once all have ended.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import options_of, write_json  # noqa: E402
from chaoslib.clients import Clients  # noqa: E402
from chaoslib.faults import Faults  # noqa: E402
from chaoslib.schedule import Deck  # noqa: E402
from chaoslib.verdict import summary, window  # noqa: E402
from hostlib.hosts import INTERFACE, Hosts, two_hosts, why_not  # noqa: E402
from hostlib.secrecy import segments  # noqa: E402
from hostlib.service import RayService  # noqa: E402
from hostlib.serving import RAY_PORT, Served, serve, start_ray  # noqa: E402
from live_cell import LiveCell  # noqa: E402

ROLES = ("prefill", "decode")  # of the nodes of each host
IDLE_S, WHOLE_S, POLL_S = 240.0, 180.0, 0.2


def main() -> int:
    args = _arguments()
    if reason := why_not():
        print(f"chaos: {reason}", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"environment": environment(), "options": options_of(args, "logs")}
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        logs = args.logs or Path(directory)
        logs.mkdir(parents=True, exist_ok=True)
        with two_hosts() as hosts, _served(args, hosts, logs) as (served, ray):
            with hosts.first.network():
                report |= _run(args, hosts, served)
            report["ray_started_again"] = ray.starts
    print({key: value for key, value in report.items() if key not in ("log", "environment")})
    if args.json:
        write_json(args.json, report)
    return 1 if report["problems"] or report["held_at_the_end"] else 0


def _run(args: argparse.Namespace, hosts: Hosts, served: Served) -> dict[str, Any]:
    cell = LiveCell(served)
    clients = Clients(
        cell.url, clients=args.clients, distinct=args.distinct, seed=args.seed, tokens=args.tokens
    )
    _say(f"{args.distinct} answers are known")
    deck = Deck(args.seed, (args.every[0], args.every[1]), args.node_timeout_s)
    faults = Faults(hosts, cell.url, deck, clients.now_s)
    try:
        with clients.asking():
            while len(faults.done) < args.faults or clients.answers < args.requests:
                _next_fault(args, deck, faults)
            seconds = clients.now_s()
        held = _held(cell, hosts) or _wrong_now(cell, clients)
    finally:
        faults.close()
        clients.close()
        cell.http.close()
    return {
        "seconds": seconds,
        "num_faults": len(faults.done),
        "faults": dict(Counter(f"{f.fault.kind} {f.fault.target}" for f in faults.done)),
        "gateways_that_died": len(faults.gateway_deaths),
        **summary(clients.answers_given, faults.gateway_deaths),
        "held_at_the_end": held,
        "log": [
            {**done.as_json(), **_seen(clients, done.at_s, done.whole_s)} for done in faults.done
        ],
    }


def _next_fault(args: argparse.Namespace, deck: Deck, faults: Faults) -> None:
    time.sleep(deck.wait_s())
    done = faults.cause()
    if done is None:
        return
    _say(f"{len(faults.done)}: {done.fault.kind} {done.name} at {done.at_s:.0f} s")
    if args.alone:
        begun = time.monotonic()
        while (reason := faults.why_not_whole()) and time.monotonic() < begun + WHOLE_S:
            time.sleep(POLL_S)
        done.whole_s = time.monotonic() - begun
        _say(f"   whole after {done.whole_s:.1f} s" if not reason else f"   not whole: {reason}")


def _seen(clients: Clients, at_s: float, whole_s: float | None) -> dict[str, Any]:
    """What clients saw of a fault that was the only one."""
    return {} if whole_s is None else window(clients.answers_given, at_s, at_s + whole_s)


def _held(cell: LiveCell, hosts: Hosts) -> str:
    """What is still wrong when nothing has been asked for long; empty if nothing is."""
    deadline = time.monotonic() + IDLE_S
    while reason := cell.why_not_idle() or _segments_left(hosts):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return reason


def _wrong_now(cell: LiveCell, clients: Clients) -> str:
    """What is wrong with a cell that looks well: every answer has to be as it was at first."""
    streams = cell.stream(clients.bodies)
    wrong = sum(s.output != right for s, right in zip(streams, clients.expected))
    return f"{wrong} answers are not as they were at first" if wrong else ""


def _segments_left(hosts: Hosts) -> str:
    """Shared memory of processes that are no more."""
    for host in hosts.all:
        if (found := len(segments(host))) != len(ROLES) + 1:  # of its nodes and its pool
            return f"{found} shared segments on {host.name}"
    return ""


@contextmanager
def _served(
    args: argparse.Namespace, hosts: Hosts, logs: Path
) -> Iterator[tuple[Served, RayService]]:
    """The cell, and the Ray of the second host."""
    from tiny_model import write_tiny_model

    model = write_tiny_model(
        logs / "model", hidden_size=128, intermediate_size=256, num_hidden_layers=4
    )
    options = {
        "address": f"{hosts.first.address}:{RAY_PORT}", "bind": INTERFACE, "model": str(model),
        "prefill": 2, "decode": 2, "gateways": 2, "threads_per_node": 1,
        "kv_cache_gib": 0.0625, "pool_dram_gib": 0.03, "heartbeat_s": 0.2,
        "node_timeout_s": args.node_timeout_s, "lease_s": args.node_timeout_s,
        "slow_node_retry_s": 5.0, "drain_s": 1.0,
    }  # fmt: skip
    first, second = hosts.all
    _say("starting Ray on two hosts")
    start_ray(first, logs, head=None, roles=ROLES)()
    ray = RayService(second, lambda: start_ray(second, logs, head=first, roles=ROLES)())
    try:
        _say("starting the cell")
        with serve(first, logs, "chaos", options) as served:
            kinds = (*ROLES, "pool")
            served.nodes = [f"{kind}-{i}" for kind in kinds for i in range(len(hosts.all))]
            yield served, ray
    finally:
        ray.close()


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--faults", type=int, default=300, help="until there were so many,")
    parser.add_argument("--requests", type=int, default=3000, help="and so many were asked")
    parser.add_argument(
        "--every", type=float, nargs=2, default=(5.0, 20.0), metavar="S",
        help="least and most seconds between two faults (default 5 20)",
    )  # fmt: skip
    parser.add_argument(
        "--alone", action="store_true", help="wait until the cell is whole before each fault"
    )
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--distinct", type=int, default=48, help="requests to choose from")
    parser.add_argument("--tokens", type=int, default=600, help="of the longest answer")
    parser.add_argument("--node-timeout-s", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--logs", type=Path, help="a directory to keep the logs in")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
