"""The processes of a host, as its maker sees and signals them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostlib.hosts import Host


@dataclass(frozen=True)
class Process:
    """`pid` is what the maker of the host knows it by, `inner` what the host does."""

    pid: int
    inner: int
    command: str


def processes_of(host: Host) -> list[Process]:
    """All that run there now."""
    space = os.readlink(f"/proc/{host.pid}/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it has ended
            if os.readlink(entry / "ns" / "pid") == space:
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
                if command.strip():  # not one that has ended and waits to be noticed
                    found.append(Process(int(entry.name), _inner(entry), command))
    return found


def of_actor(host: Host, name: str) -> list[Process]:
    """Those that run a Ray actor of this class."""
    return [each for each in processes_of(host) if each.command.startswith(f"ray::{name}")]


def raylet(host: Host) -> Process | None:
    """Ray's own process there."""
    running = processes_of(host)
    return next((p for p in running if p.command.split()[0].endswith("/raylet")), None)


def kill_all(host: Host) -> None:
    """Everything but what keeps the host: its first process, and the `cat` that that waits for."""
    for process in processes_of(host):
        program = process.command.split(maxsplit=1)[0].rpartition("/")[2]
        if process.inner != 1 and program != "cat":
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def _inner(entry: Path) -> int:
    lines = (entry / "status").read_text().splitlines()
    (numbers,) = (line for line in lines if line.startswith("NSpid:"))
    return int(numbers.split()[-1])
