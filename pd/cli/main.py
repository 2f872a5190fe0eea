"""The `pd` command: `pd serve`, `deploy`, `teardown`, `generate`, `chat`, `status`, `top`, `kv`,
`role`, `model`, `profile`, `bench`, `simulate`, `replay`, `tune`.

Exit status: 0 done, 1 it failed, 2 the command or the configuration is wrong, 130 interrupted.
Whatever a user can get wrong is one line on standard error, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from pd.cli import (
    bench,
    chat,
    deploy,
    generate,
    kv,
    model,
    profile,
    replay,
    role,
    serve,
    simulate,
    status,
    teardown,
    top,
    tune,
)
from pd.cli.arguments import Parser
from pd.errors import ConfigError, PDError

COMMANDS = (
    serve, deploy, teardown, generate, chat, status, top, kv, role, model, profile, bench,
    simulate, replay, tune,
)  # fmt: skip


def build_parser() -> Parser:
    parser = Parser(
        prog="pd",
        description="Disaggregated LLM serving: a prefill pool and a decode pool.",
    )
    parser.add_argument("--version", action=_ShowVersion, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
        if not hasattr(args, "run"):
            parser.print_help(sys.stderr)
            return 2
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(error, 2)
    except PDError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output (`pd ... | head`) has enough. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(error: Exception, code: int) -> int:
    print(f"pd: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


class _ShowVersion(argparse.Action):
    """`--version`, looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"pd {metadata.version('pd-serve')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
