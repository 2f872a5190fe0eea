"""Command-line parsing shared by the commands: strict flags, made from the configuration."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pd.config import OPTIONS, SECTIONS
from pd.errors import ConfigError
from pd.schema import Option, options_of

DEFAULT_URL = "http://127.0.0.1:8000"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and which knows near misses."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Every parser refuses what it does not know itself, so that it can suggest a flag."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument '{unknown[0]}'{self._nearest_flag(unknown[0])}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see '{self.prog} --help')\n")

    def _nearest_flag(self, word: str) -> str:
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(word.split("=")[0], flags, n=1)
        return f"; did you mean '{near[0]}'?" if near else ""


def add_config_flags(parser: argparse.ArgumentParser, keys: Collection[str] | None = None) -> None:
    """One flag for every option of the configuration, or for those of `keys`, by section."""
    for section in SECTIONS:
        if keys is not None and not any(option.key in keys for option in options_of(section)):
            continue
        summary = (section.__doc__ or "").splitlines()[0]
        group = parser.add_argument_group(f"{section.name} options", summary)
        for option in options_of(section):
            if keys is None or option.key in keys:
                _add_flag(group, option)


def _add_flag(group: argparse._ArgumentGroup, option: Option) -> None:
    default = option.written(option.default)
    shown = "" if default in ("nothing", "") else f" (default: {default})"
    kwargs: dict[str, Any] = {
        "dest": option.key,
        "default": argparse.SUPPRESS,
        "help": (option.help + shown).replace("%", "%%"),
    }
    if option.kind is bool:
        kwargs["action"] = argparse.BooleanOptionalAction
    else:
        kwargs["type"] = option.parse
        kwargs["metavar"] = _metavar(option)
    group.add_argument(option.flag, **kwargs)


def _metavar(option: Option) -> str:
    if option.choices:
        return ("," if option.many else "|").join(option.choices)
    return {int: "N", float: "X", str: "TEXT"}[option.kind]


def config_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given as flags, by key."""
    return {key: value for key, value in vars(args).items() if key in OPTIONS}


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    """Where the server is."""
    parser.add_argument(
        "--url", default=os.environ.get("PD_URL") or DEFAULT_URL, metavar="URL",
        help=f"the server (default: $PD_URL or {DEFAULT_URL})",
    )  # fmt: skip
    parser.add_argument(
        "--api-key", default=os.environ.get("PD_API_KEY"), metavar="KEY",
        help="the server's key (default: $PD_API_KEY)",
    )  # fmt: skip


def server_url(args: argparse.Namespace) -> str:
    """The given URL; ConfigError if it is not one."""
    parts = urlsplit(args.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"'{args.url}' is not a server's URL, such as {DEFAULT_URL}")
    url: str = args.url
    return url


# The sampling parameters of `pd generate` and `pd chat`: flag, type and help.
SAMPLING: Mapping[str, tuple[type, str]] = {
    "max_tokens": (int, "most tokens to generate"),
    "temperature": (float, "0 always takes the likeliest token"),
    "top_p": (float, "draw from the likeliest tokens that have this much probability together"),
    "top_k": (int, "draw from this many of the likeliest tokens"),
    "min_p": (float, "leave out tokens less likely than this share of the likeliest"),
    "seed": (int, "the same seed gives the same text"),
}


def add_sampling_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    group = parser.add_argument_group("sampling", "What is not given is the server's default.")
    for key, (kind, text) in SAMPLING.items():
        default = defaults.get(key)
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(
            "--" + key.replace("_", "-"), type=kind, default=default, help=text + shown,
            metavar="N" if kind is int else "X",
        )  # fmt: skip
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text")


def sampling_values(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, named as the API names it."""
    values = {key: getattr(args, key) for key in (*SAMPLING, "stop")}
    return {key: value for key, value in values.items() if value is not None}
