#!/usr/bin/env python3
"""A link with faults: a process that forwards what passes between two network interfaces.

    unshare --net python fault_proxy.py        (commands on standard input; see `FaultProxy`)

It stands where a switch would. Without faults the kernel forwards (a bridge); with faults every
packet passes through here, where it is late, waits for its share of the bandwidth, is held
in a stall or dropped in a cut, or belongs to a TCP connection that is being reset. Both ends
keep their own TCP: round trips, windows and retransmissions are real. What happens, and when,
follows from a seed.

A connection is reset as by a middlebox that has forgotten it: whatever either end sends on it
is answered with a RST, until it is opened anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

SIDES = ("left", "right")  # the interfaces, by their names in the proxy's namespace
_BRIDGE = "joined"
_MAX_QUEUED_BYTES = 8 << 20  # of one direction; more is dropped, as by a router
_MAX_FRAME = 1 << 17

# linux/if_packet.h. With the header that PACKET_VNET_HDR puts before each packet, those that the
# network card would have cut up and given their checksums travel on as they are.
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_VNET_HDR = 10
_ETH_P_ALL = 3
_FIN_SYN_RST, _SYN, _RST, _ACK = 0x07, 0x02, 0x04, 0x10

Flow = tuple[bytes, int, bytes, int]


@dataclass(frozen=True)
class Faults:
    """What is wrong with the link; nothing, as it stands here.

    Stalls and resets come at random times, `*_every_s` seconds apart on average. Only
    connections whose ports are both at least `reset_ports` are reset.
    """

    delay_s: float = 0.0  # each way
    jitter_s: float = 0.0  # up to this much more; nothing overtakes
    bytes_per_s: float = 0.0  # each way; 0 has no limit
    stall_every_s: float = 0.0
    stall_s: float = 1.0
    reset_every_s: float = 0.0
    reset_ports: int = 0
    seed: int = 0


class Pipe:
    """One direction: what came in, and when it may leave. Pure."""

    def __init__(self, faults: Faults, rng: random.Random) -> None:
        self.faults = faults
        self.stalled_until = 0.0
        self._rng = rng
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._num_bytes = 0
        self._free_at = 0.0  # when the last byte has been put on the line
        self._last = 0.0

    def put(self, frame: bytes, now: float) -> bool:
        """Take a packet in; False if it is dropped because too many wait."""
        faults = self.faults
        if self._num_bytes + len(frame) > _MAX_QUEUED_BYTES:
            return False
        at = now
        if faults.bytes_per_s:
            self._free_at = at = max(self._free_at, now) + len(frame) / faults.bytes_per_s
        at += faults.delay_s + faults.jitter_s * self._rng.random()
        self._last = at = max(at, self._last, self.stalled_until)
        self._waiting.append((at, frame))
        self._num_bytes += len(frame)
        return True

    def take(self, now: float) -> bytes | None:
        """The next packet, if its time has come."""
        if not self._waiting or max(self._waiting[0][0], self.stalled_until) > now:
            return None
        frame = self._waiting.popleft()[1]
        self._num_bytes -= len(frame)
        return frame

    def due(self) -> float:
        """When `take` has one."""
        return max(self._waiting[0][0], self.stalled_until) if self._waiting else float("inf")

    def clear(self) -> None:
        self._waiting.clear()
        self._num_bytes = 0


@dataclass(frozen=True)
class Segment:
    """A TCP segment of an IPv4 packet behind an Ethernet header."""

    frame: bytes
    flow: Flow  # the same for both directions
    flags: int
    at: int  # where the TCP header begins

    @classmethod
    def parse(cls, frame: bytes) -> Segment | None:
        if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
            return None
        at = 14 + (frame[14] & 15) * 4
        if len(frame) < at + 20:
            return None
        source, destination = struct.unpack_from(">HH", frame, at)
        ends = sorted([(frame[26:30], source), (frame[30:34], destination)])
        return cls(frame, (*ends[0], *ends[1]), frame[at + 13], at)

    @property
    def opens(self) -> bool:
        return self.flags & (_SYN | _ACK) == _SYN

    def reset(self) -> bytes | None:
        """The packet that tells its sender that nobody knows this connection."""
        frame, at = self.frame, self.at
        if self.flags & _RST or not self.flags & _ACK:
            return None
        acknowledged = frame[at + 8 : at + 12]  # so it is where the receiver of the RST waits
        ports = frame[at + 2 : at + 4] + frame[at : at + 2]
        addresses = frame[30:34] + frame[26:30]
        tcp = ports + acknowledged + bytes(4) + struct.pack(">BBHHH", 5 << 4, _RST, 0, 0, 0)
        pseudo = addresses + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(tcp))
        tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + addresses
        ip = ip[:10] + _checksum(ip) + ip[12:]
        return frame[6:12] + frame[:6] + b"\x08\x00" + ip + tcp


class Link:
    """The link between the two sides: faults, cuts, and what has passed. Pure."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.recording: BinaryIO | None = None
        self.cut_until = 0.0
        self._cut_after: tuple[int, float] | None = None
        self._entered = [0, 0]  # bytes from either side since a cut was ordered
        self._flows: dict[Flow, float] = {}  # when it was last seen
        self._dead: set[Flow] = set()
        self.set(Faults())

    def set(self, faults: Faults) -> None:
        """From now on this is wrong with it; what waits is forgotten (TCP sends it again)."""
        self.faults = faults
        self._rng = random.Random(faults.seed)
        self.pipes = (Pipe(faults, self._rng), Pipe(faults, self._rng))
        self._next_stall = self._next_reset = -1.0

    def cut_after(self, num_bytes: int, seconds: float) -> None:
        """Cut the link once so much more has entered it from one side."""
        self._cut_after = num_bytes, seconds
        self._entered = [0, 0]

    def cut(self, seconds: float, now: float) -> None:
        self._cut_after = None
        self.cut_until = now + seconds
        self.counters["cuts"] += 1
        for pipe in self.pipes:
            pipe.clear()

    def enter(self, side: int, packet: bytes, now: float) -> bytes | None:
        """A packet came in here: it is taken on its way, or what is returned answers it."""
        self.counters[f"{SIDES[side]}_packets"] += 1
        self.counters[f"{SIDES[side]}_bytes"] += len(packet)
        if self._cut_after is not None:
            num_bytes, seconds = self._cut_after
            self._entered[side] += len(packet)
            if self._entered[side] >= num_bytes:
                self.cut(seconds, now)
        if now < self.cut_until:
            self.counters["dropped_in_cuts"] += 1
            return None
        if self.recording is not None:
            self.recording.write(packet)
        segment = Segment.parse(packet[_VNET_HDR:]) if self.faults.reset_every_s else None
        if segment is not None:
            if segment.opens:
                self._dead.discard(segment.flow)
            if segment.flow in self._dead:
                reset = segment.reset()
                return None if reset is None else bytes(_VNET_HDR) + reset
            if min(segment.flow[1], segment.flow[3]) >= self.faults.reset_ports:
                self._flows[segment.flow] = now
        if not self.pipes[side].put(packet, now):
            self.counters["dropped_queue_full"] += 1
        return None

    def tick(self, now: float) -> None:
        """Stall and reset what is due."""
        faults, rng = self.faults, self._rng
        if faults.stall_every_s and now >= self._next_stall:
            if self._next_stall >= 0:
                self.counters["stalls"] += 1
                for pipe in self.pipes:
                    pipe.stalled_until = now + faults.stall_s
            self._next_stall = now + faults.stall_s + rng.expovariate(1 / faults.stall_every_s)
        if faults.reset_every_s and now >= self._next_reset:
            alive = [f for f, seen in self._flows.items() if now - seen < 5 and f not in self._dead]
            if self._next_reset >= 0 and alive:
                self._dead.add(rng.choice(sorted(alive)))
                self.counters["resets"] += 1
            self._next_reset = now + rng.expovariate(1 / faults.reset_every_s)

    def due(self) -> float:
        """When something is to be done without a packet coming in."""
        times = [pipe.due() for pipe in self.pipes]
        if self.faults.stall_every_s:
            times.append(self._next_stall)
        if self.faults.reset_every_s:
            times.append(self._next_reset)
        return min(times)


class Switch:
    """The process: packets between the interfaces, commands on standard input."""

    def __init__(self) -> None:
        self.link = Link()
        self.selector = selectors.DefaultSelector()
        self.selector.register(sys.stdin, selectors.EVENT_READ, None)
        self.sockets: list[socket.socket] = []

    def run(self) -> None:
        """Until standard input ends."""
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("link", "set", _BRIDGE, "up")
        while True:
            now = time.monotonic()
            self.link.tick(now)
            self._send(now)
            wait_s = self.link.due() - time.monotonic() if self.sockets else 3600.0
            for key, _ in self.selector.select(max(0.0, min(wait_s, 3600.0))):
                if key.data is None:
                    if not self._command():
                        return
                    break  # the sockets may be others now
                self._receive(key.data)

    def _receive(self, side: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                packet = self.sockets[side].recv(_MAX_FRAME)
                answer = self.link.enter(side, packet, time.monotonic())
                if answer is not None:
                    self._transmit(side, answer)

    def _send(self, now: float) -> None:
        for side, pipe in enumerate(self.link.pipes):
            while (packet := pipe.take(now)) is not None:
                self._transmit(1 - side, packet)

    def _transmit(self, side: int, packet: bytes) -> None:
        try:
            self.sockets[side].send(packet)
        except OSError:  # no room in the kernel, or longer than the interface takes
            self.link.counters["dropped_by_kernel"] += 1

    def _command(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        verb, *given = json.loads(line)
        answer: Any = None
        if verb == "plain":
            self._close()
            self.link.set(Faults())
            for side in SIDES:
                _ip("link", "set", side, "master", _BRIDGE, "up")
        elif verb == "faults":
            if not self.sockets:
                self._open()
            self.link.set(Faults(**given[0]))
        elif verb == "cut":
            self.link.cut(given[0], time.monotonic())
        elif verb == "cut_after":
            self.link.cut_after(*given)
        elif verb == "record":
            if self.link.recording is not None:
                self.link.recording.close()
            self.link.recording = open(given[0], "wb") if given[0] else None  # noqa: SIM115
        elif verb == "state":
            left_s = max(0.0, self.link.cut_until - time.monotonic())
            answer = {**self.link.counters, "cut_left_s": left_s}
        else:
            raise ValueError(f"unknown command {verb!r}")
        print(json.dumps(answer), flush=True)
        return True

    def _open(self) -> None:
        for side, name in enumerate(SIDES):
            _ip("link", "set", name, "nomaster", "up")
            each = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            each.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            each.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            each.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
            each.setsockopt(socket.SOL_SOCKET, 32, 32 << 20)  # SO_SNDBUFFORCE
            each.setblocking(False)
            each.bind((name, _ETH_P_ALL))
            self.selector.register(each, selectors.EVENT_READ, side)
            self.sockets.append(each)

    def _close(self) -> None:
        for each in self.sockets:
            self.selector.unregister(each)
            each.close()
        self.sockets = []


class FaultProxy:
    """Such a process, in a network namespace of its own, and how to command it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def plain(self) -> None:
        """Nothing is wrong, and the kernel forwards."""
        self._ask("plain")

    def faults(self, **faults: Any) -> None:
        """The keywords of `Faults`."""
        self._ask("faults", asdict(Faults(**faults)))

    def cut(self, seconds: float) -> None:
        """Nothing passes for so long. Needs `faults` before, as the rest does."""
        self._ask("cut", seconds)

    def cut_after(self, num_bytes: int, seconds: float) -> None:
        """The same once so many bytes have come from one side."""
        self._ask("cut_after", num_bytes, seconds)

    def record(self, path: Path | None) -> None:
        """Write everything that passes to this file, until called again with None."""
        self._ask("record", None if path is None else str(path))

    def state(self) -> dict[str, Any]:
        """Counters, and `cut_left_s`."""
        state: dict[str, Any] = self._ask("state")
        return state

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, *command: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fault proxy has ended with {self._process.wait()}")
        return json.loads(line)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _checksum(data: bytes) -> bytes:
    """Of the internet protocols (RFC 1071); `data` has an even length."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


if __name__ == "__main__":
    os.nice(-10) if os.geteuid() == 0 else None
    Switch().run()
