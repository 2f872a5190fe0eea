"""Any number of hosts on one switch, from which each can be unplugged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hostlib.hosts import NETWORK, Host, join

_BRIDGE = "switch"


@dataclass(frozen=True)
class Network:
    """Hosts, the first of them at NETWORK.1, and the switch that joins them."""

    hosts: Sequence[Host]
    _switch: Host

    def unplug(self, host: Host) -> None:
        """Nothing passes any more; neither side is told."""
        self._set(host, "down")

    def plug_in(self, host: Host) -> None:
        self._set(host, "up")

    def _set(self, host: Host, state: str) -> None:
        self._switch.run("ip", "link", "set", _port(self.hosts.index(host) + 1), state)


@contextmanager
def switched_hosts(count: int) -> Iterator[Network]:
    """Make them, and have nothing left of them afterwards."""
    with ExitStack() as stack:
        switch = Host("pd-switch", "")
        stack.callback(switch.close)
        switch.run("ip", "link", "add", _BRIDGE, "type", "bridge")
        switch.run("ip", "link", "set", _BRIDGE, "up")
        hosts = []
        for number in range(1, count + 1):
            host = Host(f"pd-host-{number}", f"{NETWORK}.{number}")
            stack.callback(host.close)
            join(host, switch.pid, _port(number))
            switch.run("ip", "link", "set", _port(number), "master", _BRIDGE, "up")
            hosts.append(host)
        yield Network(hosts, switch)


def _port(number: int) -> str:
    return f"port{number}"
