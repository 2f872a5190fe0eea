"""`pd status`: the nodes of a running server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from pd.cli.arguments import add_client_flags, server_url

# Column title to what it shows of a node.
COLUMNS = ("id", "role", "state", "epoch", "pid", "host", "device", "queue", "batch", "blocks")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="show the nodes of a running server",
        description="The nodes of a running server. Exit status 1 if it is not ready to serve.",
    )
    add_client_flags(parser)
    parser.add_argument("--json", action="store_true", help="print everything known, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.client import Client

    with Client(server_url(args), api_key=args.api_key, timeout_s=10.0) as client:
        cell = client.status()
    if args.json:
        print(json.dumps(cell, indent=2))
    else:
        _print_table(cell, args.url)
    return 0 if cell["ready"] else 1


def row_of(node: Mapping[str, Any]) -> tuple[str, ...]:
    """A node's cells under COLUMNS: queue and batch in sequences (and tokens), blocks in use."""
    used = node["num_blocks"] - node["free_blocks"]
    shown = {
        "queue": f"{node['num_waiting']} ({node['waiting_tokens']} tok)",
        "batch": f"{node['num_running']} ({node['running_tokens']} tok)",
        "blocks": f"{used}/{node['num_blocks']} ({node['cached_blocks']} cached)",
    }
    return tuple(shown.get(column) or str(node[column]) for column in COLUMNS)


def _print_table(cell: Mapping[str, Any], url: str) -> None:
    from rich.console import Console
    from rich.table import Table

    state = "ready" if cell["ready"] else f"not ready: {cell['reason']}"
    console = Console()
    console.print(f"{url} is {state}; {cell['num_requests']} requests in flight", highlight=False)
    if not cell["nodes"]:
        return
    table = Table(*COLUMNS, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for node in cell["nodes"]:
        table.add_row(*row_of(node))
    console.print(table)
