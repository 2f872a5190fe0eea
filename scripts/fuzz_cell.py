"""Random runs of whole simulated cells at scale: scripts/fuzz_cell.py --seeds 1000

Each seed is a cell of real coordinator, node cores and gateway records on a simulated network,
with requests, cancellations and failures at random points. A run fails if a client did not get
exactly its tokens, if a block, task or assignment is left over, or if the cell does not serve
one more request. Prints what was run and the seeds that failed, and how to run one of them again;
exits with 1 if any did.

With --faults 12 each seed is a small cell and so many faults: processes of every kind are killed
and stopped (and go on late), links are cut, nodes are ten times as slow; then blocks and tokens
are checked after every event. Several runs of parts are put together with --json, which adds to
what is in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from cell.chaos import chaos_run  # noqa: E402
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
    parser.add_argument(
        "--faults", type=int, default=0, help="faults of a run; 0 runs --events (default)"
    )
    parser.add_argument("--json", type=Path, help="add the results to those in this file")
    args = parser.parse_args()

    totals: Counter[str] = Counter()
    failed: list[int] = []
    began = time.monotonic()
    for seed in range(args.start, args.start + args.seeds):
        try:
            if args.faults:
                totals.update(chaos_run(seed, args.faults, args.topology))
            else:
                totals.update(random_run(seed, args.topology, num_events=args.events))
        except Exception:
            failed.append(seed)
            print(f"seed {seed} failed:\n{traceback.format_exc()}", file=sys.stderr)
            print(f"replay: {_replay(args, seed)}", file=sys.stderr)
        done = seed - args.start + 1
        if done % 100 == 0 and sys.stderr.isatty():
            print(f"\r{done}/{args.seeds} runs", end="", file=sys.stderr)
    print(f"{args.seeds} runs in {time.monotonic() - began:.1f} s, {len(failed)} failed")
    for name, count in sorted(totals.items()):
        print(f"{count:>12,} {name}")
    if failed:
        print("failing seeds:", *failed)
    if args.json is not None:
        _add(args.json, args, totals, failed)
    return 1 if failed else 0


def _replay(args: argparse.Namespace, seed: int) -> str:
    """The command that runs this seed alone."""
    words = ["python scripts/fuzz_cell.py", f"--start {seed} --seeds 1"]
    words.append(f"--faults {args.faults}" if args.faults else f"--events {args.events}")
    if args.topology:
        words.append(f"--topology {args.topology}")
    return " ".join(words)


def _add(path: Path, args: argparse.Namespace, totals: Counter[str], failed: list[int]) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    counts = Counter(known.get("counts", {}))
    counts.update(totals)
    part = {"start": args.start, "seeds": args.seeds, "faults": args.faults, "failed": failed}
    command = "python scripts/fuzz_cell.py --start S --seeds N --faults F --json FILE"
    parts = [*known.get("parts", []), part]
    result = {"command": command, "parts": parts, "counts": dict(sorted(counts.items()))}
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
