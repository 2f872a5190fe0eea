#!/usr/bin/env python3
"""Change the roles of nodes again and again under load, and show that no token changes.

    python scripts/soak_roles.py --changes 100 --json benchmarks/soak_roles.json

One prefill and two decode nodes on a small random model; clients ask for sampled answers all the
time, and each answer is compared with what the undisturbed cell gave. A change is over when the
node says that nothing of its old role is left. Exit status 1 if any answer is lost or differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import options_of, percentile, write_json  # noqa: E402
from role_soak import RoleSoak  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    from tiny_model import write_tiny_model

    from pd.cluster import Cluster
    from pd.config import Config

    with tempfile.TemporaryDirectory() as directory:
        model = write_tiny_model(Path(directory) / "model", hidden_size=256, num_hidden_layers=6)
        config = Config.from_dict(
            None, model=str(model), port=0, prefill=1, decode=2, kv_cache_gib=0.125,
            threads_per_node=1, heartbeat_s=0.1,
        )  # fmt: skip
        with Cluster.start(config, progress=lambda step: print(f"==> {step}")) as cluster:
            soak = RoleSoak(cluster.url, clients=args.clients, seed=args.seed)
            begun = time.monotonic()
            try:
                soak.run(args.changes)
            finally:
                soak.close()
            report = {
                "environment": environment(),
                "options": options_of(args),
                "changes": dict(soak.changes),
                "refused": soak.refused,
                "answers": soak.answers,
                "wrong": soak.wrong,
                "seconds": time.monotonic() - begun,
                "change_s_p50": percentile(soak.seconds, 0.5),
                "change_s_p90": percentile(soak.seconds, 0.9),
                "change_s_max": max(soak.seconds),
            }
    print(report)
    if args.json:
        write_json(args.json, report)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
