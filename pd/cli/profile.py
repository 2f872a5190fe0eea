"""`pd profile`: measure how long steps take here, for simulator, tuner and admission."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pd.cli.cell import table
from pd.cli.files import check_writable
from pd.cli.load import check_model_dir
from pd.cost.store import save_samples
from pd.node.profiling import ProfileOptions, profile

_FLAGS: tuple[tuple[str, Any, str], ...] = (
    ("threads", int, "CPU threads of a step (default: all cores)"),
    ("block_size", int, "tokens of a KV block"),
    ("kv_gib", float, "memory for KV; bounds batches times contexts"),
    ("max_tokens", int, "largest step, in tokens"),
    ("max_batch", int, "largest batch, in sequences"),
    ("max_context", int, "longest context, in tokens"),
    ("rounds", int, "how often each step is timed; the median counts"),
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "profile",
        help="measure how long a model's steps take on this machine",
        description="Times chunks of prompts, decode batches, both together and block transfers "
        "with the real engine, fits a cost model to them and writes it as JSON. Takes a few "
        "minutes; nothing else should run meanwhile.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's directory, or a known name")
    parser.add_argument(
        "--out", type=Path, default=Path("cost_model.json"), metavar="FILE",
        help="where to write the model (default: cost_model.json)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=Path, metavar="FILE",
        help="write the measured steps, too, as a list of JSON objects",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="where to compute (default: a GPU if there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="how weights are stored (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--load-format", choices=("auto", "dummy"), default="auto",
        help="dummy: weights are made up, only config.json is needed (default: auto)",
    )  # fmt: skip
    for name, kind, text in _FLAGS:
        default = getattr(ProfileOptions, name)
        shown = "" if default is None else f" (default: {default:g})"
        parser.add_argument(
            "--" + name.replace("_", "-"), type=kind, default=default, help=text + shown,
            metavar="N" if kind is int else "X",
        )  # fmt: skip
    parser.add_argument(
        "--links", action=argparse.BooleanOptionalAction, default=True,
        help="time block transfers between processes of this host, too (default: yes)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    for path in (args.out, args.samples):
        check_writable(path)
    options = ProfileOptions(
        _directory(args.model), args.device, args.dtype, args.load_format, links=args.links,
        **{name: getattr(args, name) for name, _, _ in _FLAGS},
    )  # fmt: skip
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("steps", total=None, visible=False)
        found = profile(
            options,
            lambda step: console.print(f"==> {step}"),
            lambda done, of: bar.update(task, completed=done, total=of, visible=True),
        )
    found.model.save(args.out)
    if args.samples is not None:
        save_samples(found.samples, args.samples)
    _print(found.model.fit)
    print(args.out)
    return 0


def _directory(name: str) -> str:
    """That of a known model, fetched if it must be, or the directory given."""
    from pd.engine.gguf_model import MODELS, get_model

    directory = Path(name).expanduser()
    if name in MODELS and not directory.is_dir():
        return str(get_model(name))
    check_model_dir(directory, sorted(MODELS))
    return str(directory.resolve())


def _print(fit: Mapping[str, Any]) -> None:
    """The fit's errors, on the steps it was made from and on those held out."""
    from rich.console import Console

    errors = table("steps", "number", "mean error", "p95", "bias", text=1)
    for held, found in ((False, fit), (True, fit["held out"])):
        for phase, each in found.items():
            if phase == "held out":
                continue
            errors.add_row(
                f"{phase}, held out" if held else phase, str(each["samples"]),
                f"{each['mean']:.1%}", f"{each['p95']:.1%}", f"{each['bias']:+.1%}",
            )  # fmt: skip
    Console(stderr=True).print(errors)
