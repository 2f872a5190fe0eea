"""What listens while a cell runs on one machine: nothing that another host could reach."""

from __future__ import annotations

import ipaddress
import socket
from collections import defaultdict

import psutil
from live_cell import LiveCell


def listening() -> dict[str, set[str]]:
    """Addresses that this process and all below it listen on, TCP and UDP, by program."""
    found: dict[str, set[str]] = defaultdict(set)
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        try:
            name = process.cmdline()[0].split("/")[-1] if process.cmdline() else process.name()
            for each in process.net_connections(kind="inet"):
                # A UDP socket that is connected answers its peer only.
                bound = each.type == socket.SOCK_DGRAM and not each.raddr and each.laddr
                if each.status == psutil.CONN_LISTEN or bound:
                    found[name].add(each.laddr.ip)
        except psutil.NoSuchProcess:
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def test_nothing_listens_outside_loopback(pd_cell: LiveCell) -> None:
    found = listening()
    print("\n".join(f"{name}: {sorted(ips)}" for name, ips in sorted(found.items())))
    outside = {name: ips for name, ips in found.items() if not all(map(is_loopback, ips))}
    assert not outside
    # All that was to be looked at was seen.
    programs = " ".join(found)
    for part in ("gcs_server", "raylet", "NodeActor", "GatewayActor", "CoordinatorActor"):
        assert part in programs, f"no socket of {part} among {programs}"
