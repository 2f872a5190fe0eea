#!/usr/bin/env python3
"""What a running server answers to bad input, as a table.

    python scripts/bad_input_table.py --url http://127.0.0.1:8000 [--api-key KEY]

Exit status 1 if any answer has another status than it should, or if the server does not serve a
good request afterwards. Without --api-key the case of a wrong key is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from bad_input import check_all, table  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    args = parser.parse_args()
    try:
        verdicts = check_all(args.url, args.api_key)
    except httpx.TransportError as error:
        parser.exit(2, f"{parser.prog}: {args.url} does not answer ({error}): start 'pd serve'\n")
    print(table(verdicts))
    wrong = [verdict for verdict in verdicts if verdict.status != verdict.wanted]
    for verdict in wrong:
        print(f"{verdict.name}: {verdict.status} instead of {verdict.wanted}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
