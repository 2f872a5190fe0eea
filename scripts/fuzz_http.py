#!/usr/bin/env python3
"""Requests made from the OpenAPI description, good and bad: no 5xx, no hang, nothing left over.

    python scripts/fuzz_http.py --cases 20000 --json benchmarks/fuzz_http.json

The gateway is the real one, over real sockets; the cell behind it answers every request at once,
with as many tokens as it was asked for. Schemathesis makes the requests: bodies, headers and
paths that the description allows, and ones that it does not. Every answer must have a status,
a type and a shape that the description has, and what it does not allow must be refused. In the
end no request may run and no task of the gateway be left. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import options_of, write_json  # noqa: E402
from front import eventually, serving  # noqa: E402
from http_fuzz import Fuzz  # noqa: E402
from text_model import write_text_model  # noqa: E402


def main() -> int:
    args = _arguments()
    logging.getLogger("pd").setLevel(logging.ERROR)  # targets of 0 ms make every request slow
    report = environment()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-http-") as directory,
        serving(write_text_model(Path(directory) / "model")) as front,
    ):
        tasks = front.http.get("/v1/status").json()["gateway"]["tasks"]
        fuzz = Fuzz(front.url, front.http.get("/openapi.json").json())
        fuzz.run(args.cases, args.seed, lambda text: print(text, file=sys.stderr, flush=True))
        eventually(lambda: not front.server.link.running)
        eventually(lambda: front.http.get("/v1/status").json()["gateway"]["tasks"] <= tasks)
        front.complete()
    figures = {
        "cases": fuzz.cases,
        "statuses": {name: dict(sorted(each.items())) for name, each in fuzz.statuses.items()},
        "server_errors": sum(
            count for each in fuzz.statuses.values() for status, count in each.items()
            if status.startswith("5")
        ),
        "hung": fuzz.hung,
        "slowest_s": fuzz.slowest_s,
        "seconds": time.monotonic() - began,
        "failures": fuzz.failures,
    }  # fmt: skip
    for failure in fuzz.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print({key: value for key, value in figures.items() if key != "failures"})
    if args.json:
        write_json(args.json, {"environment": report, "options": options_of(args), **figures})
    return 1 if fuzz.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
