"""What the commands that look at a running server share: its status, and a place for tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pd.cli.arguments import add_client_flags, server_url

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDTH = 200  # where there is no terminal whose width counts
_TIMEOUT_S = 10.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_client_flags(parser)
    parser.add_argument("--json", action="store_true", help="print everything known, as JSON")


def status(args: argparse.Namespace) -> Mapping[str, Any]:
    """The server's `/v1/status`."""
    from pd.client import Client

    with Client(server_url(args), api_key=args.api_key, timeout_s=_TIMEOUT_S) as client:
        return client.status()


def console() -> Console:
    from rich.console import Console

    made = Console()
    if not made.is_terminal:
        made.width = _WIDTH
    return made


def table(*columns: str, text: int | None = None) -> Table:
    """An empty table; of its columns the first `text` (default: all) are text, others figures."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if text is None or i < text else "right")
    return made
