"""`pd top`: a running server in a terminal, drawn anew every few seconds."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pd.cli.arguments import add_client_flags, server_url
from pd.cli.cell import console

if TYPE_CHECKING:
    from pd.client import Client

_TIMEOUT_S = 10.0
_REQUESTS = 60


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        help="watch a running server in the terminal",
        description="What the live page shows, in a terminal: targets met, latency over time, "
        "nodes, KV tiers, recent requests, decisions. q or Ctrl-C leaves. With --once, exit "
        "status 1 if the server is not ready.",
    )
    add_client_flags(parser)
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS",
        help="between two looks (default: 2)",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print it once and exit")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.client import Client

    url = server_url(args)
    with Client(url, api_key=args.api_key, timeout_s=_TIMEOUT_S) as client:
        if args.once:
            return _once(client)
        return _watch(client, max(0.2, args.interval))


def look(client: Client) -> dict[str, Any]:
    """Everything that is drawn."""
    return {
        "status": client.status(),
        "history": client.watch("history"),
        "requests": client.watch("requests/recent", limit=_REQUESTS),
        "decisions": client.watch("decisions", limit=_REQUESTS)["decisions"],
    }


def _once(client: Client) -> int:
    from pd.cli.top_view import view

    seen = look(client)
    out = console()
    out.print(view(seen, out.width, height=None))
    return 0 if seen["status"]["ready"] else 1


def _watch(client: Client, interval_s: float) -> int:
    from rich.live import Live
    from rich.text import Text

    from pd.cli.top_view import view
    from pd.errors import ClientError

    out = console()
    with _keys(), Live(console=out, screen=True, auto_refresh=False) as live:
        seen: Mapping[str, Any] | None = None
        while True:
            try:
                seen = look(client)
                drawn: Any = view(seen, out.width, out.height)
            except ClientError as error:
                if seen is None:
                    raise
                # It may be back soon: the last that was seen would look like now.
                drawn = Text(f"no answer: {error}\n\nq leaves", style="red")
            live.update(drawn, refresh=True)
            if _pressed_q(interval_s):
                return 0


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """While this lasts, keys arrive one by one and are not shown, where there is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed_q(timeout_s: float) -> bool:
    """Wait this long, or until q is pressed."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return False
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            # Past Python's own buffer, which `select` does not see.
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed or pressed.lower().count(b"q"):
                return True
    return False
