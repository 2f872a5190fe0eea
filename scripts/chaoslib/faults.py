"""Faults of a cell on two hosts: signals to its processes, and cuts of the link."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from hostlib.hosts import Hosts
from hostlib.processes import of_actor, processes_of, raylet

from chaoslib.schedule import LINK, RAY, Deck, Fault

_DUTY_S = 0.05  # of a slow process: it runs a tenth of each
_STATUS_S = 2.0
_LOOK_S = 0.25  # between two looks at who lives
_ACTORS = {"coordinator": "CoordinatorActor", "gateway": "GatewayActor"}
_NO_PROCESS = 0  # the link is none


@dataclass
class Done:
    """A fault that was caused, on whom, and how long the cell took to be whole again, if that was
    waited for."""

    at_s: float
    fault: Fault
    name: str
    whole_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        row = {"at_s": self.at_s, "kind": self.fault.kind, "target": self.name}
        if self.fault.seconds:
            row["seconds"] = self.fault.seconds
        if self.whole_s is not None:
            row["whole_s"] = self.whole_s
        return row


class Faults:
    """Causes what a deck says. `now_s` is the clock of what is noted here.

    To be used by one thread, and in the first host's network. `gateway_deaths` are the times at
    which a gateway process was seen to have ended, whoever ended it.
    """

    def __init__(self, hosts: Hosts, url: str, deck: Deck, now_s: Callable[[], float]) -> None:
        self.done: list[Done] = []
        self.gateway_deaths: list[float] = []
        self._hosts = hosts
        self._url = url
        self._deck = deck
        self._now_s = now_s
        self._rows: list[dict[str, Any]] = []  # of the nodes, as last told
        self._answered: dict[str, int] = {}  # gateways that have served, and their processes
        self._busy: set[int] = set()  # processes that a fault holds
        self._acting: list[threading.Thread] = []
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="gateway-watch")
        self._watcher.start()

    def close(self) -> None:
        """Wait for what ends by itself."""
        for thread in self._acting:
            thread.join()
        self._closing.set()
        self._watcher.join()

    def cause(self) -> Done | None:
        """The next fault, whose target is there and has no other fault; None if nobody is."""
        living = self._living()
        fault = self._deck.draw(living)
        if fault is None:
            return None
        there = sorted(living[fault.target].items())
        name, pid = there[int(fault.pick * len(there))]
        done = Done(self._now_s(), fault, name)
        self.done.append(done)
        if fault.kind == "kill":
            _signal(pid, signal.SIGKILL)
            return done
        self._busy.add(pid)
        if fault.kind == "stop":
            _signal(pid, signal.SIGSTOP)
        else:
            act = {"pause": _pause, "slow": _slow_down, "cut": self._cut}[fault.kind]
            thread = threading.Thread(target=self._act, args=(act, pid, fault.seconds))
            self._acting.append(thread)
            thread.start()
        return done

    def why_not_whole(self) -> str:
        """What is missing, or still disturbed; empty if nothing is."""
        running = self._pids()
        if self._busy & {*running.values(), _NO_PROCESS}:
            return "a fault lasts"
        if raylet(self._hosts.second) is None:
            return "Ray on the second host"
        status = self._ask()
        if status is None:
            return "no status"
        if not status["ready"]:
            return str(status["reason"])
        for row in status["nodes"]:
            if row["state"] != "ready" or (row["host"], row["pid"]) not in running:
                return f"{row['id']} is {row['state']}"
        for kind, name in _ACTORS.items():
            there = {p.inner for p in of_actor(self._hosts.first, name)}
            if not there or (kind == "gateway" and there != set(self._answered.values())):
                return f"a {kind}"
        return ""

    def _act(self, act: Callable[[int, float], None], pid: int, seconds: float) -> None:
        try:
            act(pid, seconds)
        finally:
            self._busy.discard(pid)

    def _cut(self, pid: int, seconds: float) -> None:
        link = self._hosts.link
        link.faults()
        link.cut(seconds)
        time.sleep(seconds)
        link.plain()

    def _living(self) -> Mapping[str, Mapping[str, int]]:
        """The processes without a fault: kind -> name -> pid."""
        self._ask()
        found: dict[str, dict[str, int]] = {}
        pids = self._pids()
        for row in self._rows:
            pid = pids.get((row["host"], row["pid"]))
            if pid is not None:
                found.setdefault(row["role"], {})[row["id"]] = pid
        for kind, actor in _ACTORS.items():
            for process in of_actor(self._hosts.first, actor):
                found.setdefault(kind, {})[f"{kind} {process.inner}"] = process.pid
        ray = raylet(self._hosts.second)
        if ray is not None:
            found[RAY] = {f"Ray on {self._hosts.second.name}": ray.pid}
        found[LINK] = {"the link": _NO_PROCESS}
        free = {
            kind: {name: pid for name, pid in each.items() if pid not in self._busy}
            for kind, each in found.items()
        }
        return {kind: each for kind, each in free.items() if each}

    def _pids(self) -> dict[tuple[str, int], int]:
        """Of everything that runs, by its host and what the host knows it by."""
        return {(host.name, p.inner): p.pid for host in self._hosts.all for p in processes_of(host)}

    def _ask(self) -> dict[str, Any] | None:
        """The status, if a gateway answers."""
        try:
            answer = httpx.get(
                f"{self._url}/v1/status", timeout=_STATUS_S, headers={"connection": "close"}
            )
            status: dict[str, Any] = answer.json()
            self._rows = status["nodes"]
            gateway = status["gateway"]
        except (httpx.HTTPError, ValueError, KeyError):
            return None
        self._answered[gateway["id"]] = gateway["pid"]
        return status

    def _watch(self) -> None:
        before: set[int] = set()
        while not self._closing.wait(_LOOK_S):
            now = {p.pid for p in of_actor(self._hosts.first, _ACTORS["gateway"])}
            self.gateway_deaths += [self._now_s()] * len(before - now)
            before = now


def _pause(pid: int, seconds: float) -> None:
    _signal(pid, signal.SIGSTOP)
    time.sleep(seconds)
    _signal(pid, signal.SIGCONT)


def _slow_down(pid: int, seconds: float) -> None:
    """Let a process run a tenth of the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and _signal(pid, signal.SIGSTOP):
        time.sleep(0.9 * _DUTY_S)
        _signal(pid, signal.SIGCONT)
        time.sleep(0.1 * _DUTY_S)


def _signal(pid: int, number: signal.Signals) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
