"""`pd deploy`: start a cell that outlives the command, or change one that runs."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from pd.cli.arguments import add_config_flags, config_flags
from pd.cli.load import load_config, resolve_model, with_api_keys_from_environment
from pd.cli.serve import greet

DESCRIPTION = """\
Start a server in a running Ray cluster and return once it serves; it goes on without the command.
With a server by that name running, change it as it serves: no request fails.

  ray start --head && pd deploy --config cell.yaml     a server in the cluster of this machine
  pd deploy --config cell.yaml --decode 4 --dry-run    what four decode nodes would take
  pd deploy --config cell.yaml --decode 4              do it
  pd teardown                                          end it
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "deploy",
        help="start a server in a Ray cluster, or change the one that runs there",
        usage="pd deploy [--config FILE] [--name NAME] [--dry-run] [--roll] [OPTION ...]",
        description=DESCRIPTION,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file; flags win over it")
    add_name_flag(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    parser.add_argument(
        "--roll", action="store_true", help="replace every process, one after the other"
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def add_name_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", default="pd", metavar="NAME",
        help="which server, where one Ray cluster has several (default: pd)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, config_flags(args))
    config = with_api_keys_from_environment(config)
    address = config.cluster.address or "auto"
    cluster = dataclasses.replace(config.cluster, address=address)
    config = dataclasses.replace(config, cluster=cluster)
    from pd.cli.progress import Progress

    with Progress() as progress:
        config = resolve_model(config, progress.step)
        from pd import deployment
        from pd.placement import join

        join(address, progress.step)
        url = deployment.deploy(
            config, args.name, progress.step, dry_run=args.dry_run, roll=args.roll
        )
    if url:
        greet(url, config, "'pd teardown' ends it")
    return 0
