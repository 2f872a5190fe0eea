"""Ray and `pd serve` on hosts: starting them, their logs, and ending them."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostlib.hosts import INTERFACE, RAY_DIRECTORY, Host, Hosts, interrupt

RAY_PORT, HTTP_PORT = 6379, 8000
# Below all ports that systems give out by themselves: a connection is Ray's own if either of its
# ports is below. Ray's head has some more, which only its own host uses.
FIRST_FREE_PORT = 32768
_RAY_PORTS = {
    "node-manager-port": 7001, "object-manager-port": 7002, "dashboard-agent-listen-port": 7003,
    "dashboard-agent-grpc-port": 7004, "runtime-env-agent-port": 7005,
    "metrics-export-port": 7006, "min-worker-port": 20000, "max-worker-port": 20999,
}  # fmt: skip
_ENVIRONMENT = {
    "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
    "RAY_kill_worker_timeout_milliseconds": "500", "PYTHONUNBUFFERED": "1",
    "RAY_gcs_server_port_wait_time_s": "60",
    # Who can talk to Ray can run anything on its hosts: these talk with a key of their own.
    "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # fmt: skip
_OBJECT_STORE_BYTES = 80 << 20  # nothing of ours goes through it
_RAY_STARTS_S, _SERVES_S, _ENDS_S = 120.0, 300.0, 60.0
_RAY_STARTS = 3


@dataclass
class Served:
    """A server that runs: what `LiveCell` needs to know of a cluster."""

    url: str
    config: Mapping[str, Any]
    _stop: Callable[[], None]
    # As many as join: two that serve, and a pool on each of their hosts.
    nodes: Sequence[str] = field(default=())

    def stop(self) -> None:
        self._stop()


def start_ray(
    host: Host, logs: Path, *, head: Host | None, roles: Sequence[str]
) -> Callable[[], subprocess.Popen[bytes]]:
    """Start Ray on a host that takes one node of each role; `head` is where the cluster's head is.

    What is returned waits until it has started, and returns what runs as long as it does: hosts
    may start side by side.
    """
    join = [f"--address={head.address}:{RAY_PORT}"] if head else ["--head", f"--port={RAY_PORT}"]
    words = [
        _beside_python("ray"), "start", *join, "--block",
        f"--node-ip-address={host.address}",
        f"--num-cpus={len(roles)}", f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats", *([] if head else ["--include-dashboard=false"]),
        *(f"--{name}={port}" for name, port in _RAY_PORTS.items()),
        f"--resources={json.dumps({f'pd_{role}': 1 for role in roles})}",
    ]  # fmt: skip
    log = logs / f"ray-{host.name}.log"

    def start() -> subprocess.Popen[bytes]:
        log.unlink(missing_ok=True)
        return host.start(words, _ENVIRONMENT, log)

    def wait() -> subprocess.Popen[bytes]:
        running, left = process, _RAY_STARTS
        while True:
            try:
                _await(running, log, _ray_runs, _RAY_STARTS_S)
                return running
            except RuntimeError:
                left -= 1
                if not left:
                    raise
                # On a busy machine Ray's own limit of 30 s, which cannot be set, is too short.
                interrupt(running, _ENDS_S)
                running = start()

    process = start()
    return wait


def _ray_runs(text: str) -> bool:
    return "Ray runtime started" in text


@contextmanager
def serve(host: Host, logs: Path, name: str, options: Mapping[str, Any]) -> Iterator[Served]:
    """`pd serve` with these options, run on this host until the end of the `with`."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    log = logs / f"{name}.log"
    process = host.start(
        [sys.executable, "-m", "pd.cli.main", "serve", f"--host={host.address}",
         f"--port={HTTP_PORT}", *flags],
        _ENVIRONMENT, log,
    )  # fmt: skip
    url = f"http://{host.address}:{HTTP_PORT}"
    try:
        _await(process, log, lambda text: f"\n{url}\n" in f"\n{text}", _SERVES_S)
        yield Served(url, options, lambda: interrupt(process, _ENDS_S))
    finally:
        interrupt(process, _ENDS_S)


@contextmanager
def serve_across(hosts: Hosts, logs: Path, options: Mapping[str, Any]) -> Iterator[Served]:
    """Prefill on the first host, decode on the second, a pool on each."""
    started = [
        start_ray(hosts.first, logs, head=None, roles=("prefill",)),
        start_ray(hosts.second, logs, head=hosts.first, roles=("decode",)),
    ]
    for wait in started:
        wait()
    address = f"{hosts.first.address}:{RAY_PORT}"
    with serve(
        hosts.first, logs, "two-hosts", {"address": address, "bind": INTERFACE, **options}
    ) as served:
        served.nodes = ("prefill-0", "decode-0", "pool-0", "pool-1")
        yield served


def node_logs(host: Host) -> str:
    """What the processes of our nodes on this host have logged."""
    logs = ray_session(host) / "logs"
    return "\n".join(path.read_text(errors="replace") for path in sorted(logs.glob("worker-*.err")))


def ray_session(host: Host) -> Path:
    """The directory of the Ray that runs on this host, or ran there last."""
    session = host.path(f"{RAY_DIRECTORY}/session_latest")
    # The link is absolute, and would lead out of the host.
    return host.path(str(session.readlink())) if session.is_symlink() else session


def ways_of_blocks(hosts: Hosts) -> dict[tuple[str, str], str]:
    """(sender, receiver) -> transport, as the senders said last."""
    pattern = re.compile(r"^\S+ \S+ (\S+) INFO blocks to (\S+) go by (\w+)", re.MULTILINE)
    said = [found for host in hosts.all for found in pattern.findall(node_logs(host))]
    return {(sender, receiver): way for sender, receiver, way in said}


def wrong_ways(ways: Mapping[tuple[str, str], str], homes: Mapping[str, str]) -> list[str]:
    """What is not as it should be, in words: TCP between hosts, shared memory within one.

    `homes` are the members' hosts.
    """
    problems = [
        f"blocks of {sender} go to {receiver} by {way}"
        for (sender, receiver), way in ways.items()
        if way != ("shm" if homes[sender] == homes[receiver] else "zmq")
    ]
    if len(ways) != len(homes) * (len(homes) - 1):
        problems.append(f"only {len(ways)} ways of blocks are known")
    if homes["prefill-0"] == homes["decode-0"]:
        problems.append("prefill and decode node are on the same host")
    return problems


def _beside_python(command: str) -> str:
    """A command of the environment that runs this, which need not be on the PATH."""
    return str(Path(sys.executable).with_name(command))


def _await(
    process: subprocess.Popen[bytes],
    log: Path,
    ready: Callable[[str], bool],
    timeout_s: float,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready(text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"it did not start:\n{text[-3000:]}")
        time.sleep(0.1)
