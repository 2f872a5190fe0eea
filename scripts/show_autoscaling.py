#!/usr/bin/env python3
"""Load rises and falls, and with it the nodes of a cell and the hosts of its Ray; no request fails.

    python scripts/show_autoscaling.py --json benchmarks/autoscaling.json

Ray's own autoscaler runs with its fake provider: a host is one more raylet on this machine. The
head has room for one prefill and one decode node; each further node takes a host of its own. Two
clients ask all the time. Then many ask for long outputs, until there are as many decode nodes as
there may be; then others come with long prompts, until there are two prefill nodes; then the two
are alone again, until nodes and hosts are as few as at first. Every answer is sampled, is asked for
once, and is compared with what the undisturbed cell said. At last the coordinator's recording is
replayed, which has to decide the same. Exit status 1 if an answer was lost or differed, or if nodes
or hosts did not come and go.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from asking import Asking  # noqa: E402
from benchlib.environment import environment  # noqa: E402
from benchlib.fake_hosts import AUTH, fake_hosts  # noqa: E402
from benchlib.report import options_of, write_json  # noqa: E402

if TYPE_CHECKING:
    from pd.cluster import Cluster

_LOOK_S = 0.25


class Watch:
    """Numbers of nodes and hosts over time: a line wherever one of them changes."""

    def __init__(self, cluster: Cluster, limit_s: float) -> None:
        self.cluster = cluster
        self.limit_s = limit_s
        self.begun = time.monotonic()
        self.lines: list[dict[str, Any]] = []
        self.phases: dict[str, dict[str, float]] = {}

    def look(self) -> dict[str, Any]:
        import ray

        status = self.cluster.status()
        going = ("leaving", "drained")
        roles = [row["role"] for row in status.nodes if row["state"] not in going]
        now = {
            "prefill": roles.count("prefill"), "decode": roles.count("decode"),
            "wanted": dict(status.wanted), "hosts": sum(node["Alive"] for node in ray.nodes()),
        }  # fmt: skip
        if not self.lines or {**self.lines[-1], "at_s": 0} != {**now, "at_s": 0}:
            self.lines.append({"at_s": round(time.monotonic() - self.begun, 1), **now})
            print(f"==> {self.lines[-1]}", flush=True)
        return now

    def until(self, phase: str, **conditions: Callable[[dict[str, Any]], bool]) -> bool:
        """Until all of these hold; says after how long each did."""
        begun, since = time.monotonic(), self.phases.setdefault(phase, {})
        print(f"==> {phase}", flush=True)
        while len(since) < len(conditions) and time.monotonic() - begun < self.limit_s:
            now = self.look()
            for name, holds in conditions.items():
                if name not in since and holds(now):
                    since[name] = round(time.monotonic() - begun, 1)
            time.sleep(_LOOK_S)
        return len(since) == len(conditions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=12, help="that ask for long outputs")
    parser.add_argument("--prompts", type=int, default=6, help="that come with long prompts")
    parser.add_argument("--most", type=int, default=3, help="most decode nodes")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    os.environ.update(AUTH)
    with (
        tempfile.TemporaryDirectory(prefix="pd-") as directory,
        fake_hosts(Path(directory), head_cpus=2, most=args.most) as address,
    ):
        report = show(args, address, Path(directory))
    print(json.dumps(report, indent=1))
    if args.json:
        write_json(args.json, report)
    return 0 if report["done"] and not report["wrong"] else 1


def show(args: argparse.Namespace, address: str, directory: Path) -> dict[str, Any]:
    from tiny_model import write_tiny_model

    from pd.cluster import Cluster
    from pd.config import Config

    model = write_tiny_model(directory / "model", hidden_size=256, num_hidden_layers=6)
    record = directory / "events"
    config = Config.from_dict(
        None, model=str(model), address=address, port=0, prefill=1, decode=1, max_num_seqs=8,
        max_prefill_nodes=2, max_decode_nodes=args.most, scale_up_s=5.0, scale_down_s=20.0,
        kv_cache_gib=0.12, pool_dram_gib=0.0, prefix_cache=False, threads_per_node=1,
        cpus_per_node=1.0, heartbeat_s=0.1, node_drain_s=1.0, record=str(record),
    )  # fmt: skip
    with Cluster.start(config, progress=lambda step: print(f"==> {step}", flush=True)) as cluster:
        print("==> asking the undisturbed cell", flush=True)
        few = Asking(cluster.url, clients=2, seed=args.seed, tokens=100)
        many = Asking(cluster.url, clients=args.clients, seed=args.seed + 1, tokens=300)
        long = Asking(cluster.url, clients=args.prompts, seed=args.seed + 2, tokens=4, prompt=3500)
        watch = Watch(cluster, args.limit)
        done, asking = True, (few, many, long)
        with few.asking():
            with ExitStack() as load:
                load.enter_context(many.asking())
                done &= watch.until(
                    "long outputs",
                    wanted=lambda now: now["wanted"].get("decode", 1) > 1,
                    host=lambda now: now["hosts"] > 1,
                    node=lambda now: now["decode"] > 1,
                    all=lambda now: now["decode"] == args.most,
                )
                load.enter_context(long.asking())
                done &= watch.until(
                    "long prompts",
                    wanted=lambda now: now["wanted"].get("prefill", 1) == 2,
                    node=lambda now: now["prefill"] == 2,
                )
            done &= watch.until(
                "little load",
                wanted=lambda now: sum(now["wanted"].values()) == 2,
                nodes=lambda now: (now["prefill"], now["decode"]) == (1, 1),
                hosts=lambda now: now["hosts"] == 1,
            )
        decisions = few.http.get("/v1/decisions").json()["decisions"][::-1]
        for each in asking:
            each.close()
    return {
        "environment": environment(), "options": options_of(args), "done": done,
        "answers": sum(each.answers for each in asking),
        "wrong": [line for each in asking for line in each.wrong],
        "seconds": watch.phases, "history": watch.lines,
        "decisions": [
            {key: each[key] for key in ("what", "reason", "numbers")}
            for each in decisions if each["kind"] == "change"
        ],
        "decided_again": replayed(record),
    }  # fmt: skip


def replayed(record: Path) -> int:
    """Decisions about numbers that a replay of the recording makes again; ReplayError where it
    decides anything else."""
    from pd.outbox import Decided
    from pd.recorder import replay

    effects = (each.effect for each in replay(record))
    return sum(isinstance(each, Decided) and each.kind == "scale" for each in effects)


if __name__ == "__main__":
    sys.exit(main())
