"""`pd serve`: start a cell and its HTTP front, and run until told to stop."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
from typing import Any

from pd.cli.arguments import add_config_flags, config_flags
from pd.cli.load import (
    dump_config,
    load_config,
    resolve_model,
    with_api_keys_from_environment,
)
from pd.config import Config
from pd.errors import ConfigError

DESCRIPTION = """\
Start prefill and decode nodes, or nodes that do both, with an OpenAI-compatible HTTP front.

  pd serve                                   one prefill and one decode node
  pd serve --prefill 2 --decode 4            more of each
  pd serve --mixed 2                         nodes that serve both phases
  pd serve --config serve.yaml --port 9000   a file, and flags that win over it
"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="start a server and run until Ctrl-C",
        usage="pd serve [--config FILE] [--print-config] [OPTION ...]",
        description=DESCRIPTION,
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file; flags win over it")
    parser.add_argument(
        "--print-config", action="store_true",
        help="print the whole configuration as such a file, and exit",
    )  # fmt: skip
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, config_flags(args))
    if args.print_config:
        sys.stdout.write(dump_config(config))
        return 0
    config = with_api_keys_from_environment(config)
    return serve(config)


def serve(config: Config) -> int:
    """Start the cell, say where it is, wait for Ctrl-C or SIGTERM, stop it."""
    from pd.cli.progress import Progress

    check_port(config)
    _take_signals()
    with Progress() as progress:
        config = resolve_model(config, progress.step)
        from pd.cluster import Cluster

        cluster = Cluster.start(config, progress=progress.step)
    _take_signals()  # once more: Ray has put its own handler there
    try:
        greet(cluster.url, config, "Ctrl-C stops")
        cluster.wait()
    except KeyboardInterrupt:
        print("\n==> stopping (once more to kill)", file=sys.stderr, flush=True)
    finally:
        # From here on a second signal ends the process where it stands.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        cluster.stop()
    print("==> stopped", file=sys.stderr, flush=True)
    return 0


def check_port(config: Config) -> None:
    """ConfigError at once if the port cannot be had, rather than when everything has started.

    On a Ray cluster the gateway may run on another machine, whose ports cannot be tried here.
    """
    host, port = config.gateway.host, config.gateway.port
    if config.cluster.address is not None:
        return
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot serve HTTP on {host} port {port}: {error.strerror}; "
            "choose another --port (0 takes a free one) or --host"
        ) from None


def _take_signals() -> None:
    """Also SIGINT: a shell starts what it puts in the background with that one ignored."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def greet(url: str, config: Config, ending: str) -> None:
    """The address goes to standard output, where scripts read it."""
    cluster, gateway = config.cluster, config.gateway
    pools = cluster.counts
    nodes = ", ".join(f"{count} {role}" for role, count in pools.items() if count)
    key = "" if not gateway.tenants() else ' -H "Authorization: Bearer $PD_API_KEY"'
    body = json.dumps(
        {"model": gateway.served_model_name, "prompt": "The capital of France is", "max_tokens": 16}
    )
    print(url, flush=True)
    print(
        f"==> serving {gateway.served_model_name} on {url} ({nodes}); {ending}\n"
        f"==> try: curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        file=sys.stderr,
        flush=True,
    )
