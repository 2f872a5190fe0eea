#!/usr/bin/env python3
"""Cancel thousands of requests at random points, and show that nothing is left of them.

    python scripts/soak_cancel.py --cancels 10000 --out benchmarks/soak_cancel.json
    python scripts/soak_cancel.py --cancels 10000 --url http://127.0.0.1:8000

Without --url it starts one prefill and one decode node on a small random model. Clients leave
while they send, before the first token, in the middle of a stream, and while a whole answer is
pending, politely or with a reset. Afterwards every block must be free, no request may be known
to any process, the gateway's tasks and every process's file descriptors must be back to where
they were, and the next request must get the tokens that the first one got. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchlib.environment import environment
from benchlib.report import write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from cancel_soak import CancelSoak  # noqa: E402

WARMUP = 200  # cancellations after which what is allocated once has been allocated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cancels", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a running server, instead of one of this script's own")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    facts = environment()
    with _server(args.url) as url:
        soak = CancelSoak(url, concurrency=args.concurrency, seed=args.seed)
        try:
            report = _soak(soak, args.cancels)
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        finally:
            soak.close()
    print(json.dumps(report, indent=2))
    if args.out:
        write_json(args.out, {"environment": facts, **report})
    return 0


def _soak(soak: CancelSoak, cancels: int) -> dict[str, object]:
    expected = soak.serve_one()
    soak.run(WARMUP)
    before, memory = soak.wait_idle(), soak.memory_mib()
    soak.stages.clear()
    soak.ends.clear()
    soak.answered = 0
    started = shown = time.monotonic()

    def progress(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            rate = done / (shown - started)
            print(f"==> {done} of {cancels} cancelled, {rate:.0f} a second", file=sys.stderr)

    soak.run(cancels, progress)
    took = time.monotonic() - started
    after = soak.wait_idle(before)
    assert not soak.unexpected, f"{len(soak.unexpected)} refused, such as {soak.unexpected[0]}"
    assert soak.serve_one() == expected, "the next request got other tokens"
    return {
        "cancelled": sum(soak.stages.values()),
        "stages": dict(soak.stages),
        "ends": dict(soak.ends),
        "answered_before_leaving": soak.answered,
        "seconds": round(took, 1),
        "before": before,
        "after": after,
        "memory_mib_before": memory,
        "memory_mib_after": soak.memory_mib(),
    }


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    from tiny_model import write_tiny_model

    from pd.cluster import Cluster
    from pd.config import Config

    with tempfile.TemporaryDirectory() as directory:
        model = write_tiny_model(Path(directory) / "model", hidden_size=128, num_hidden_layers=4)
        config = Config.from_dict(
            None, model=str(model), port=0, prefill=1, decode=1, kv_cache_gib=0.125
        )
        step = lambda text: print(f"==> {text}", file=sys.stderr)  # noqa: E731
        with Cluster.start(config, progress=step) as cluster:
            yield cluster.url


if __name__ == "__main__":
    sys.exit(main())
