"""`pd status`: the nodes of a running server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from pd.cli.cell import add_flags, console, status, table

# Column title to what it shows of a node.
COLUMNS = ("id", "role", "state", "epoch", "pid", "host", "device", "queue", "batch", "blocks")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="show the nodes of a running server",
        description="The nodes of a running server. Exit status 1 if it is not ready to serve.",
    )
    add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    cell = status(args)
    if args.json:
        print(json.dumps(cell, indent=2))
    else:
        _print_table(cell, args.url)
    return 0 if cell["ready"] else 1


def row_of(node: Mapping[str, Any]) -> tuple[str, ...]:
    """A node's cells under COLUMNS: queue and batch in sequences (and tokens), blocks in use.

    What a server of another version does not tell is shown as "-".
    """
    told = {key: str(value) for key, value in node.items()}
    free, total = node.get("free_blocks"), node.get("num_blocks")
    told |= {
        "queue": f"{told.get('num_waiting', '-')} ({told.get('waiting_tokens', '-')} tok)",
        "batch": f"{told.get('num_running', '-')} ({told.get('running_tokens', '-')} tok)",
        "blocks": "-" if free is None or total is None else f"{total - free}/{total}",
    }
    if "cached_blocks" in told:
        told["blocks"] += f" ({told['cached_blocks']} cached)"
    return tuple(told.get(column, "-") for column in COLUMNS)


def _print_table(cell: Mapping[str, Any], url: str) -> None:
    state = "ready" if cell["ready"] else f"not ready: {cell['reason']}"
    out = console()
    out.print(f"{url} is {state}; {cell['num_requests']} requests in flight", highlight=False)
    if not cell["nodes"]:
        return
    nodes = table(*COLUMNS)
    for node in cell["nodes"]:
        nodes.add_row(*row_of(node))
    out.print(nodes)
