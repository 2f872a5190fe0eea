#!/usr/bin/env python3
"""Replace every process of a cell again and again under load, and show that no request fails.

    python scripts/soak_rolling.py --requests 2000 --json benchmarks/soak_rolling.json

Two gateways on one address, a prefill node, two decode nodes and a pool, on a small random model.
Clients ask for sampled answers all the time, half of them on connections that they keep and half on
new ones, and never ask again for what failed. Each answer is compared with what the undisturbed
cell gave. One process after the other is replaced, the coordinator last, round after round. Exit
status 1 if any answer is lost or differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from asking import Asking  # noqa: E402
from benchlib.environment import environment  # noqa: E402
from benchlib.report import options_of, percentile, write_json  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=2000, help="until so many were answered")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-room", action="store_true", help="Ray has no CPU for a second node")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    from tiny_model import write_tiny_model

    from pd.cluster import Cluster
    from pd.config import Config
    from pd.placement import start_ray

    start_ray(num_cpus=3 if args.no_room else 4)
    with tempfile.TemporaryDirectory() as directory:
        model = write_tiny_model(Path(directory) / "model", hidden_size=256, num_hidden_layers=6)
        config = Config.from_dict(
            None, model=str(model), port=0, gateways=2, prefill=1, decode=2, kv_cache_gib=0.125,
            pool_dram_gib=0.05, threads_per_node=1, cpus_per_node=1.0, heartbeat_s=0.1,
            node_drain_s=1.0,
        )  # fmt: skip
        with Cluster.start(config, progress=lambda step: print(f"==> {step}")) as cluster:
            soak = Asking(cluster.url, clients=args.clients, seed=args.seed, tokens=64)
            seconds: dict[str, list[float]] = {}
            rounds, begun = 0, time.monotonic()
            with soak.asking():
                while soak.answers < args.requests and not soak.wrong:
                    for member_id, running in sorted(cluster.members().items()):
                        started = time.monotonic()
                        cluster.replace(member_id)
                        seconds.setdefault(running.kind, []).append(time.monotonic() - started)
                        print(f"==> {soak.answers} answers; {member_id} replaced", flush=True)
                    started = time.monotonic()
                    cluster.replace("coordinator")
                    seconds.setdefault("coordinator", []).append(time.monotonic() - started)
                    rounds += 1
            soak.close()
            report = {
                "environment": environment(),
                "options": options_of(args),
                "rounds": rounds,
                "replaced": {kind: len(each) for kind, each in seconds.items()},
                "answers": soak.answers,
                "wrong": soak.wrong,
                "seconds": time.monotonic() - begun,
                "replacement_s_p50": {k: percentile(each, 0.5) for k, each in seconds.items()},
                "replacement_s_max": {k: max(each) for k, each in seconds.items()},
            }
    print(report)
    if args.json:
        write_json(args.json, report)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
