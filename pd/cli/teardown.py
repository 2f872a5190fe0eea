"""`pd teardown`: end a server that `pd deploy` started."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pd.cli.deploy import add_name_flag


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "teardown",
        help="end a server that `pd deploy` started",
        description="Refuse new requests, let running ones end for gateway.drain_s, and end every "
        "process of the server. The Ray cluster stays.",
    )
    parser.add_argument(
        "--address", default="auto", metavar="TEXT",
        help="the Ray cluster, as HOST:PORT or auto (default: auto)",
    )  # fmt: skip
    add_name_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd import deployment
    from pd.cli.progress import Progress
    from pd.placement import join

    with Progress() as progress:
        join(args.address, progress.step)
        deployment.teardown(args.name, progress.step)
    print("==> ended", file=sys.stderr)
    return 0
