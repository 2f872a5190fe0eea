"""`pd generate`: one prompt to a running server, its text to standard output as it comes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pd.cli.arguments import add_client_flags, add_sampling_flags, sampling_values, server_url

if TYPE_CHECKING:
    from pd.client.answers import RequestMetrics


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a prompt",
        description="Continue a prompt. The text goes to standard output as it is generated.",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads standard input")
    add_client_flags(parser)
    add_sampling_flags(parser, max_tokens=128)
    parser.add_argument("-n", type=int, default=1, metavar="N", help="outputs (default: 1)")
    parser.add_argument(
        "--stats", action="store_true", help="print times and nodes to standard error"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.client import Client

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    params = sampling_values(args)
    with Client(server_url(args), api_key=args.api_key) as client:
        if args.n == 1:
            with client.stream(prompt, **params) as stream:
                for delta in stream:
                    print(delta.text, end="", flush=True)
            print()
            metrics = stream.requests
        else:
            answer = client.generate(prompt, n=args.n, **params)
            for choice in answer.choices:
                print(f"[{choice.index}] {choice.text}")
            metrics = answer.requests
    if args.stats:
        for each in metrics:
            print(stats_line(each), file=sys.stderr)
    return 0


def stats_line(metrics: RequestMetrics) -> str:
    """Times and places of one request, in a line."""
    parts: Iterable[str] = (
        f"TTFT {milliseconds(metrics.ttft_s)}",
        f"TPOT {milliseconds(metrics.tpot_s)}",
        f"prefill on {metrics.prefill_node or '?'}",
        f"decode on {metrics.decode_node or '?'}",
        f"KV moved {size(metrics.kv_moved_bytes)}",
    )
    return ", ".join(parts)


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def size(num_bytes: int | None) -> str:
    """Bytes for people: 0 where nothing moved, - where it is not known."""
    if num_bytes is None:
        return "-"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes else "0"
