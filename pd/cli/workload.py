"""Flags that describe a workload, shared by the commands that need one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pd.errors import ConfigError
from pd.types import SLO
from pd.workload.lengths import parse_lengths
from pd.workload.spec import Process, WorkloadSpec
from pd.workload.synthetic import SharedPrefixes, Turns

T = TypeVar("T")

# Flags that say how requests are made up, with what they are when not given. With a file they
# would do nothing, and are refused.
_MADE_UP: dict[str, Any] = {
    "arrivals": "poisson",
    "burstiness": 2.0,
    "prompt": "512",
    "output": "64",
    "shared_prefixes": None,
    "turns": None,
    "think_s": 10.0,
}


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "workload",
        "A file, or requests made up from distributions. LENGTHS are tokens: 512, 100-900 "
        "(uniform), or lognormal:MEAN[,CV[,MOST]].",
    )
    group.add_argument(
        "--workload", type=Path, metavar="FILE",
        help="a Mooncake trace, an Azure trace, ServeGen rows or a log of 'pd bench --record', "
        "plain or gzip",
    )  # fmt: skip
    group.add_argument(
        "--spread", action=argparse.BooleanOptionalAction, default=True,
        help="spread requests that a Mooncake trace has at one tick of its clock until the next "
        "(default: yes)",
    )  # fmt: skip
    group.add_argument("--prompt", metavar="LENGTHS", help="of prompts (default: 512)")
    group.add_argument("--output", metavar="LENGTHS", help="of outputs (default: 64)")
    group.add_argument(
        "--arrivals", choices=get_args(Process),
        help="independent, in bursts, or evenly apart (default: poisson)",
    )  # fmt: skip
    group.add_argument(
        "--burstiness", type=float, metavar="CV",
        help="coefficient of variation of the gaps of gamma arrivals; 1 is poisson (default: 2)",
    )  # fmt: skip
    group.add_argument(
        "--shared-prefixes", metavar="COUNTxTOKENS",
        help="prompts begin with one of COUNT beginnings of TOKENS tokens each, such as 8x1024",
    )  # fmt: skip
    group.add_argument(
        "--turns", metavar="LENGTHS",
        help="requests are turns of conversations of so many turns; --prompt is then what each "
        "turn adds to all that was said",
    )  # fmt: skip
    group.add_argument(
        "--think-s", type=float, metavar="S",
        help="mean pause between an answer and the next turn (default: 10)",
    )  # fmt: skip
    group.add_argument(
        "--rate", type=float, metavar="R",
        help="requests a second (default: a file's own, else 1)",
    )  # fmt: skip
    group.add_argument("--requests", type=int, metavar="N", help="at most so many requests")
    group.add_argument(
        "--duration", type=float, metavar="S", help="requests of the first S seconds only"
    )
    group.add_argument(
        "--scale-time", type=float, default=1.0, metavar="X",
        help="multiply times: 0.5 doubles the rate (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--scale-length", type=float, default=1.0, metavar="X",
        help="multiply lengths of prompts, outputs and shared beginnings (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--scale-output", type=float, metavar="X",
        help="multiply lengths of outputs by this instead",
    )  # fmt: skip
    group.add_argument(
        "--longest", type=int, metavar="N",
        help="leave out requests of more than N tokens, prompt and output together",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="the same seed, the same workload")


def add_slo_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("targets", "A request is good if it meets all that are set.")
    group.add_argument("--slo-ttft-ms", type=float, metavar="MS", help="to the first token")
    group.add_argument("--slo-tpot-ms", type=float, metavar="MS", help="mean time between tokens")


def workload_spec(args: argparse.Namespace) -> WorkloadSpec:
    """What the flags say; ConfigError names the one that is wrong."""
    if args.workload is not None:
        useless = [name for name in _MADE_UP if getattr(args, name) is not None]
        if useless:
            flags = ", ".join("--" + name.replace("_", "-") for name in useless)
            raise ConfigError(f"--workload brings its own requests: leave out {flags}")
    made = {
        name: default if getattr(args, name) is None else getattr(args, name)
        for name, default in _MADE_UP.items()
    }
    if args.burstiness is not None and made["arrivals"] != "gamma":
        raise ConfigError("--burstiness is of --arrivals gamma")
    if args.think_s is not None and args.turns is None:
        raise ConfigError("--think-s is of --turns")
    for name in ("rate", "duration", "scale_time", "scale_length", "scale_output", "burstiness"):
        _positive(args, name)
    for name in ("requests", "longest"):
        _positive(args, name)
    if made["think_s"] < 0:
        raise ConfigError("--think-s must not be negative")
    turns = made["turns"]
    return WorkloadSpec(
        file=args.workload,
        spread=args.spread,
        process=made["arrivals"],
        cv=made["burstiness"],
        prompts=_parsed("--prompt", parse_lengths, made["prompt"]),
        outputs=_parsed("--output", parse_lengths, made["output"]),
        shared=_shared(made["shared_prefixes"]),
        turns=None
        if turns is None
        else Turns(_parsed("--turns", parse_lengths, turns), made["think_s"]),
        rate=args.rate,
        num_requests=args.requests,
        duration_s=args.duration,
        scale_time=args.scale_time,
        scale_length=args.scale_length,
        scale_output=args.scale_output,
        longest=args.longest,
        seed=args.seed,
    )


def slo_of(args: argparse.Namespace) -> SLO | None:
    """The targets given, None without any."""
    seconds = {}
    for name in ("ttft", "tpot"):
        value = _positive(args, f"slo_{name}_ms")
        seconds[f"{name}_s"] = None if value is None else value / 1e3
    slo = SLO(**seconds)
    return None if slo == SLO() else slo


def _shared(text: str | None) -> SharedPrefixes | None:
    if text is None:
        return None
    count, cross, tokens = text.partition("x")
    if not (cross and count.isdecimal() and tokens.isdecimal() and int(count) > 0):
        raise ConfigError(f"--shared-prefixes {text}: write COUNTxTOKENS, such as 8x1024")
    return SharedPrefixes(int(count), int(tokens))


def _parsed(flag: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _positive(args: argparse.Namespace, name: str) -> float | None:
    value: float | None = getattr(args, name)
    if value is not None and not 0 < value < float("inf"):
        raise ConfigError(f"--{name.replace('_', '-')} must be above 0 and finite, not {value}")
    return value
