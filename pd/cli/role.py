"""`pd role`: what a node of a running server is to do from now on."""

from __future__ import annotations

import argparse
from typing import Any

from pd.cli.arguments import add_client_flags, server_url

_TIMEOUT_S = 15.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "role",
        help="change the role of a node of a running server",
        description="Make a node a prefill, decode or mixed node. Its weights and its cache stay, "
        "and no request is lost: what it was doing for its old role goes on elsewhere.",
    )
    add_client_flags(parser)
    parser.add_argument("node", metavar="NODE", help="a node's id, as `pd status` shows it")
    parser.add_argument("role", choices=("prefill", "decode", "mixed"))
    parser.add_argument(
        "--drain", action="store_true", help="let what it is doing end there instead of moving it"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.client import Client

    with Client(server_url(args), api_key=args.api_key, timeout_s=_TIMEOUT_S) as client:
        client.change_role(args.node, args.role, migrate=not args.drain)
    print(f"{args.node} is a {args.role} node")
    return 0
