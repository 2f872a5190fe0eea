"""Random runs of whole simulated cells at scale: scripts/fuzz_cell.py --seeds 1000

Each seed is a cell of real coordinator, node cores and gateway records on a simulated network,
with requests, cancellations and failures at random points. A run fails if a client did not get
exactly its tokens, if a block, task or assignment is left over, or if the cell does not serve
one more request. Prints what was run and the seeds that failed; exits with 1 if any did.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from cell.workload import TOPOLOGIES, random_run  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many runs (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--events", type=int, default=24, help="requests, cancels and failures a run (default 24)"
    )
    parser.add_argument(
        "--topology", choices=sorted(TOPOLOGIES), help="one only (default: the seed chooses)"
    )
    args = parser.parse_args()

    totals: Counter[str] = Counter()
    failed: list[int] = []
    began = time.monotonic()
    for seed in range(args.start, args.start + args.seeds):
        try:
            totals.update(random_run(seed, args.topology, num_events=args.events))
        except Exception:
            failed.append(seed)
            print(f"seed {seed} failed:\n{traceback.format_exc()}", file=sys.stderr)
        done = seed - args.start + 1
        if done % 100 == 0 and sys.stderr.isatty():
            print(f"\r{done}/{args.seeds} runs", end="", file=sys.stderr)
    print(f"{args.seeds} runs in {time.monotonic() - began:.1f} s, {len(failed)} failed")
    for name, count in sorted(totals.items()):
        print(f"{count:>12,} {name}")
    if failed:
        print("failing seeds:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
