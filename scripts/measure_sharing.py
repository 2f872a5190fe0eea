#!/usr/bin/env python3
"""What steps of two nodes on this machine cost each other: the simulator's `Sharing`, measured.

    python scripts/measure_sharing.py [--rounds 7]

Two engines, a core and a thread each: one times its steps, by turns of several kinds, while the
other idles or repeats steps of one kind. The two numbers of `pd.cost.sharing.Sharing` are fitted
to all pairs of kinds. No requests are served and no cell is started. About 90 seconds with the
options as they are; nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchlib.cells import resolve
from benchlib.environment import environment
from benchlib.report import options_of, show_table, write_json
from fidelity.contention import POINTS, fit, measure, memory_shares

from pd.cost import library
from pd.cost.sharing import Sharing


def show(
    times: Mapping[str, Mapping[str, float]], sharing: Sharing, shares: Mapping[str, float]
) -> None:
    """How many times as long as alone, measured and as `sharing` has it."""
    alone = times[""]
    rows = [["alone, ms", *(f"{alone[step] * 1e3:.1f}" for step in POINTS)]]
    for beside in POINTS:
        cells = (
            f"{times[beside][step] / alone[step]:.2f} "
            f"({sharing.slowness(shares[step], [shares[beside]]):.2f})"
            for step in POINTS
        )
        rows.append([f"beside {beside}", *cells])
    show_table("A step beside a neighbour's, in times of it alone (as fitted)", ["", *POINTS], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cost", default="smollm2-135m-cpu-1-thread", help="of a node alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/sharing.json"))
    args = parser.parse_args()
    about = environment()
    shares = memory_shares(library.find(args.cost))
    times = measure(resolve(model=args.model).model.model, args.rounds)
    sharing, error = fit(times, shares)
    show(times, sharing, shares)
    print(f"{sharing}; {error:.1%} off in the mean")
    write_json(args.json, {
        "environment": about, "options": options_of(args), "sharing": asdict(sharing),
        "mean_error": error, "memory_shares": shares,
        "seconds": {beside or "nothing": dict(each) for beside, each in times.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
