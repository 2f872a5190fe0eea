"""`pd model get NAME` and `pd model list`: models that can be fetched by name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "model",
        help="fetch a model by name, or list the names",
        description="Models that can be fetched by name. Any other is used by its directory.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    get = actions.add_parser(
        "get",
        help="fetch a model; the last line of output is its directory",
        description="Fetch a model, unless it is there already, and print its directory.",
    )
    get.add_argument("name", metavar="NAME", help="one of the names that `pd model list` shows")
    get.add_argument("--dest", metavar="DIR", help="where to put it (default: under $PD_HOME)")
    get.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="how its weights are stored (default: float32)",
    )  # fmt: skip
    get.set_defaults(run=run_get)
    names = actions.add_parser("list", help="show the names, and which are here already")
    names.set_defaults(run=run_list)


def run_get(args: argparse.Namespace) -> int:
    from pd.engine.gguf_model import get_model

    dest = None if args.dest is None else Path(args.dest)
    directory = get_model(args.name, dest, args.dtype, progress=report)
    print(directory)
    return 0


def run_list(args: argparse.Namespace) -> int:
    from pd.engine.gguf_model import MODELS, default_dest

    for name, model in sorted(MODELS.items()):
        here = default_dest(name)
        where = str(here) if here.is_dir() else f"not fetched ({model.num_bytes / 1e6:.0f} MB)"
        print(f"{name:20} {where}")
    return 0


def report(message: str) -> None:
    """Progress goes to standard error: standard output is the answer."""
    print(f"==> {message}", file=sys.stderr, flush=True)
