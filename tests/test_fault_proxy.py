"""The pure parts of the link that fails in other tests: when packets leave, who is reset."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from fault_proxy import Faults, Link, Pipe, Segment
from hypothesis import given
from hypothesis import strategies as st

A, B = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
SYN, RST, ACK = 0x02, 0x04, 0x10
HEADER = bytes(10)  # what packet sockets put before each packet


def segment(source: bytes, destination: bytes, ports: tuple[int, int], flags: int) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", *ports, 1000, 77_000, 5 << 4, flags, 100, 0, 0) + b"data"
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + source + destination
    return b"BBBBBB" + b"AAAAAA" + b"\x08\x00" + ip + tcp


def checksum_is_right(data: bytes) -> bool:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def test_a_reset_is_what_a_stack_accepts() -> None:
    sent = Segment.parse(segment(A, B, (40000, 50000), ACK))
    assert sent is not None
    frame = sent.reset()
    assert frame is not None
    back = Segment.parse(frame)
    assert back is not None and back.flow == sent.flow and back.flags == RST
    assert (frame[:6], frame[6:12], frame[26:30], frame[30:34]) == (b"AAAAAA", b"BBBBBB", B, A)
    assert struct.unpack_from(">HHI", frame, 34) == (50000, 40000, 77_000)
    assert checksum_is_right(frame[14:34])
    pseudo = B + A + struct.pack(">BBH", 0, socket.IPPROTO_TCP, 20)
    assert checksum_is_right(pseudo + frame[34:])
    for flags in (SYN, RST, RST | ACK):
        answered = Segment.parse(segment(A, B, (1, 2), flags))
        assert answered is not None and answered.reset() is None


@pytest.mark.parametrize("frame", [b"", bytes(60), segment(A, B, (1, 2), ACK)[:50]])
def test_what_is_no_tcp_is_left_alone(frame: bytes) -> None:
    assert Segment.parse(frame) is None


@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 1500)), min_size=1, max_size=40),
    st.floats(0, 0.1), st.floats(0, 0.1), st.sampled_from([0.0, 1e4]),
)  # fmt: skip
def test_nothing_overtakes_and_nothing_is_early(
    packets: list[tuple[float, int]], delay_s: float, jitter_s: float, bytes_per_s: float
) -> None:
    faults = Faults(delay_s=delay_s, jitter_s=jitter_s, bytes_per_s=bytes_per_s)
    pipe, now, entered = Pipe(faults, random.Random(0)), 0.0, []
    for number, (wait_s, size) in enumerate(packets):
        now += wait_s
        assert pipe.put(number.to_bytes(2, "big") + bytes(size), now)
        entered.append((now, size + 2))
    line_free = 0.0
    for number, (came, size) in enumerate(entered):
        due = pipe.due()
        line_free = max(line_free, came) + (size / bytes_per_s if bytes_per_s else 0.0)
        assert due >= (line_free if bytes_per_s else came) + delay_s - 1e-9
        assert pipe.take(due - 1e-6) is None
        frame = pipe.take(due)
        assert frame is not None and frame[:2] == number.to_bytes(2, "big")
    assert pipe.due() == float("inf")


def drive(seed: int) -> tuple[list[float], dict[str, int]]:
    """When packets of three connections leave a link with every fault."""
    link = Link()
    link.set(Faults(delay_s=0.01, jitter_s=0.01, stall_every_s=1.0, stall_s=0.5,
                    reset_every_s=0.5, reset_ports=1000, seed=seed))  # fmt: skip
    left = []
    for step in range(1000):
        now = step * 0.01
        link.tick(now)
        link.enter(0, HEADER + segment(A, B, (2000 + step % 3, 3000), ACK), now)
        link.enter(0, HEADER + segment(A, B, (22, 3000), ACK), now)
        while link.pipes[0].take(now) is not None:
            left.append(now)
    return left, dict(link.counters)


def test_faults_follow_from_the_seed() -> None:
    assert drive(1) == drive(1)
    left, counters = drive(1)
    assert drive(2)[0] != left
    assert counters["stalls"] >= 3 and counters["resets"] == 3, "port 22 is spared"


def test_a_connection_is_dead_until_it_is_opened_anew() -> None:
    link = Link()
    link.set(Faults(reset_every_s=0.1))
    packet = HEADER + segment(A, B, (2000, 3000), ACK)
    answer, now = None, 0.0
    while answer is None:
        now += 0.01
        link.tick(now)
        answer = link.enter(0, packet, now)
    back = HEADER + segment(B, A, (3000, 2000), ACK)
    assert link.enter(1, back, now) is not None, "for both ends"
    assert link.enter(0, HEADER + segment(A, B, (2000, 3000), SYN), now) is None
    assert link.enter(0, packet, now) is None


def test_a_cut_comes_after_so_many_bytes() -> None:
    link = Link()
    link.cut_after(1000, 5.0)
    passed = []
    for step in range(200):
        now = step * 0.1
        link.enter(0, bytes(100), now)
        if link.pipes[0].take(now) is not None:
            passed.append(step)
    assert passed[:9] == list(range(9)) and 9 not in passed
    assert min(step for step in passed if step > 9) == 59
    assert link.counters["cuts"] == 1 and link.counters["dropped_in_cuts"] == 50
