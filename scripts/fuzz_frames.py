#!/usr/bin/env python3
"""Bad messages to every kind of socket: scripts/fuzz_frames.py [--count 10000] [--seed 0]

Messages that are corrupted, truncated, too long, of another epoch, out of order, of another
layout, not granted, of another cell or plain garbage go through real sockets to the receivers
of blocks (over TCP, and of the news about shared memory) and of control messages. Every one has
to be refused and counted, none may be served, and the receiver has to take the next good one.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from bad_frames import attack_mailbox, attack_transport  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="messages to each receiver")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # each refusal is logged
    attacks = {
        "blocks over TCP": lambda: attack_transport("zmq", args.count, args.seed),
        "blocks in shared memory": lambda: attack_transport("shm", args.count, args.seed),
        "control messages": lambda: attack_mailbox(args.count, args.seed),
    }
    for name, attack in attacks.items():
        begun = time.monotonic()
        tried = attack()
        parts = ", ".join(f"{count} {way.replace('_', ' ')}" for way, count in tried.most_common())
        print(
            f"{name}: {sum(tried.values())} sent, as many refused, none served "
            f"({time.monotonic() - begun:.1f} s): {parts}"
        )


if __name__ == "__main__":
    main()
