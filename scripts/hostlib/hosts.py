"""Hosts made of Linux namespaces: network, processes, /dev/shm, host name and Ray's directory of
their own, joined by veth interfaces through a proxy that can spoil the link.

Nothing of this has a name on the machine. It lives as long as a process whose standard input
the maker holds: when the maker ends, however it ends, all of it is gone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fault_proxy import SIDES, FaultProxy

INTERFACE = "pd0"  # on every host, as eth0 would be
NETWORK = "10.77.0"
PROGRAMS = ("ip", "unshare", "nsenter", "mount", "hostname")
RAY_DIRECTORY = "/tmp/ray"
_KINDS = ("--net", "--uts", "--mount", "--pid", "--ipc")
_UNSHARE = ("unshare", *_KINDS, "--fork", "--kill-child", "--mount-proc")
_CLONE_NEWNET = 0x40000000
_STARTING_S, _ENDING_S = 10.0, 20.0

# The first process of a host. `cat` ends with its standard input, and everything with it.
_INIT = f"""
set -e
hostname "$1"
mount -t tmpfs -o size=2g tmpfs /dev/shm
mkdir -p {RAY_DIRECTORY}
mount -t tmpfs -o size=1g tmpfs {RAY_DIRECTORY}
ip link set lo up
echo ready
cat > /dev/null || true
"""


def why_not() -> str:
    """What is missing for making hosts, in words; empty where it works."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"the program '{program}' is not installed"
    links = "ip link add one type veth peer name two && ip link add three type bridge"
    tried = subprocess.run(
        [*_UNSHARE, "sh", "-c", links], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if tried.returncode:
        said = tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"]
        return f"namespaces cannot be made here: {said[-1]}"
    return ""


class Host:
    """One host: `address` on `INTERFACE`, and processes in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._keeper = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _INIT, "init", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            raise RuntimeError(f"host {name} could not be made: {self._keeper.wait()}")
        (self.pid,) = children_of(self._keeper.pid)
        self._started: list[subprocess.Popen[bytes]] = []

    def command(self, *words: str) -> list[str]:
        """What runs this in the host."""
        return ["nsenter", "--target", str(self.pid), *_KINDS, "--", *words]

    def run(self, *words: str) -> str:
        """Run to its end; its output. CalledProcessError unless it ends well."""
        done = subprocess.run(self.command(*words), check=True, capture_output=True, text=True)
        return done.stdout

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """A process in the host that ends with it; its output goes into a file."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def path(self, path: str) -> Path:
        """A file of the host as others reach it."""
        return Path(f"/proc/{self.pid}/root{path}")

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread's new sockets are the host's meanwhile."""
        with open("/proc/thread-self/ns/net") as here, open(f"/proc/{self.pid}/ns/net") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def close(self) -> None:
        """End everything in it."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=_ENDING_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper.stdout.close()
        for process in self._started:
            process.wait(timeout=_ENDING_S)


@dataclass(frozen=True)
class Hosts:
    """Two hosts and the link between them."""

    first: Host
    second: Host
    link: FaultProxy

    @property
    def all(self) -> tuple[Host, Host]:
        return self.first, self.second


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make them, and have nothing left of them afterwards."""
    with ExitStack() as stack:
        link = FaultProxy()
        stack.callback(link.close)
        _wait_for_namespace(link.pid)
        hosts = []
        for number, side in enumerate(SIDES, 1):
            host = Host(f"pd-host-{number}", f"{NETWORK}.{number}")
            stack.callback(host.close)
            join(host, link.pid, side)
            hosts.append(host)
        link.plain()
        yield Hosts(hosts[0], hosts[1], link)


def join(host: Host, switch: int, side: str) -> None:
    """A veth pair: one end in the switch's namespace, the other is the host's interface."""
    subprocess.run(
        ["ip", "link", "add", side, "netns", str(switch), "type", "veth",
         "peer", "name", INTERFACE, "netns", str(host.pid)],
        check=True,
    )  # fmt: skip
    host.run("ip", "address", "add", f"{host.address}/24", "dev", INTERFACE)
    host.run("ip", "link", "set", INTERFACE, "up")
    # Leads nowhere. Programs find out their own address by asking which one would be used.
    host.run("ip", "route", "add", "default", "via", f"{NETWORK}.254")


def _wait_for_namespace(pid: int) -> None:
    """Until `unshare` has done so."""
    ours, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + _STARTING_S
    while os.readlink(f"/proc/{pid}/ns/net") == ours:
        if time.monotonic() > deadline:
            raise RuntimeError("no network namespace was made for the link")
        time.sleep(0.01)


def _enter(namespace: int) -> None:
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def interrupt(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Have a process that was started in a host end, in time by itself; nsenter, which stands
    before it, passes no signal on."""
    if process.poll() is not None:
        return
    below = children_of(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in below:
            os.kill(pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=timeout_s)
            return
