"""What every transport does, whichever it is: one body, run against each."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from kv_nodes import LAYOUT, ChildReceiver, Node, open_files, wait_until
from transports import BETWEEN_PROCESSES, TRANSPORTS

from kvstore.segment import SHM
from kvstore.transfer import Push
from kvstore.transport import copying
from kvstore.transport.events import Arrived
from kvstore.transport.expected import Grant
from pd.sockets import CurveKeys

BLOCK = LAYOUT.block_bytes

Make = Callable[..., Node]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(transport: str) -> Iterator[Make]:
    nodes: list[Node] = []

    def new(node_id: str, **options: object) -> Node:
        nodes.append(Node(node_id, [transport], **options))
        return nodes[-1]

    yield new
    for node in nodes:
        node.close()


def pair(make: Make, **settings: object) -> tuple[Node, Node]:
    a, b = make("a", epoch=1, **settings), make("bb", epoch=2, **settings)
    a.hub.connect(b.peer)
    return a, b


def freeze(node: Node) -> threading.Lock:
    """While this lock is held, nothing lands at the node."""
    return node.hub._node.expected.lock


def test_blocks_arrive_where_they_were_granted(make: Make, transport: str) -> None:
    a, b = pair(make)
    before = b.arena.blocks.copy()
    src, dst = (3, 4, 5, 60, 0, 9), (10, 11, 30, 31, 32, 1)
    b.hub.expect(7, "a", 1, dst)
    a.push(b, 7, src, dst)
    (pushed,) = a.wait_pushed(7)
    assert (pushed.first, pushed.count, pushed.ok) == (0, 6, True)
    assert pushed.num_bytes == 6 * BLOCK and pushed.seconds > 0
    assert b.arrived(7) == [Arrived(7, 0, 6, True, 6 * BLOCK)]
    np.testing.assert_array_equal(b.arena.blocks[list(dst)], a.arena.blocks[list(src)])
    others = [block for block in range(64) if block not in dst]
    np.testing.assert_array_equal(b.arena.blocks[others], before[others])
    assert a.woken.is_set() and b.woken.is_set()
    assert a.hub.transport_of("bb") == transport


@pytest.mark.parametrize("verify", [True, False])
def test_many_pushes_of_many_transfers_in_any_order(make: Make, verify: bool) -> None:
    a, b = pair(make, message_bytes=3 * BLOCK, window_bytes=7 * BLOCK, verify=verify)
    pages = np.random.default_rng(0).permutation(64).tolist()
    b.hub.expect(1, "a", 1, pages[:40])
    b.hub.expect(2, "a", 1, pages[40:])
    a.push(b, 1, range(20, 40), pages[20:40], first=20)
    a.push(b, 2, range(40, 64), pages[40:])
    a.push(b, 1, range(20), pages[:20])
    assert [p.ok for p in a.wait_pushed(1, 2) + a.wait_pushed(2)] == [True] * 3
    for transfer_id, count in ((1, 40), (2, 24)):
        places = [range(e.first, e.first + e.count) for e in b.arrived(transfer_id)]
        assert sorted(itertools.chain(*places)) == list(range(count))
    np.testing.assert_array_equal(b.arena.blocks[pages], a.arena.blocks)


def test_both_directions_at_once(make: Make) -> None:
    a, b = pair(make, message_bytes=2 * BLOCK)
    b.hub.connect(a.peer)
    ours, theirs = a.arena.blocks[:20].copy(), b.arena.blocks[:20].copy()
    a.hub.expect(1, "bb", 2, range(20, 40))
    b.hub.expect(2, "a", 1, range(20, 40))
    a.push(b, 2, range(20), range(20, 40))
    b.push(a, 1, range(20), range(20, 40))
    assert a.wait_pushed(2)[0].ok and b.wait_pushed(1)[0].ok
    np.testing.assert_array_equal(b.arena.blocks[20:40], ours)
    np.testing.assert_array_equal(a.arena.blocks[20:40], theirs)


def test_cancel_drops_what_is_queued(make: Make) -> None:
    a, b = pair(make, message_bytes=BLOCK, window_bytes=BLOCK)
    b.hub.expect(1, "a", 1, range(30))
    b.hub.expect(2, "a", 1, range(30, 40))
    with freeze(b):
        jobs = [a.push(b, 1, [i], [i], first=i) for i in range(30)]
        a.push(b, 2, range(30, 40), range(30, 40))
        a.hub.cancel(1)
        a.wait_pushed(1, 28)  # all but what may be on its way
        assert not any(event.ok for event in a.pushed(1))
    wait_until(lambda: len(a.pushed(1)) >= 30, "the last to come back")
    assert sorted(event.first for event in a.pushed(1)) == [job.first for job in jobs]
    assert a.wait_pushed(2)[0].ok, "another transfer was cancelled"
    assert len(a.pushed(1)) == 30


def test_what_is_not_expected_is_refused(make: Make, transport: str) -> None:
    a, b = pair(make)
    before = b.arena.blocks.copy()
    b.hub.expect(1, "someone-else", 1, [0])
    b.hub.expect(2, "a", 99, [0])
    b.hub.expect(3, "a", 1, [0])
    b.hub.forget(3)
    b.hub.forget(3)
    for transfer_id in (1, 2, 3, 4):
        a.push(b, transfer_id, [5], [0])
        assert not a.wait_pushed(transfer_id)[0].ok
        assert not b.arrived(transfer_id)
    assert b.hub.counters["refused"] == 4
    if transport != "shm":  # whose sender writes itself, trusted to write what it was granted
        np.testing.assert_array_equal(b.arena.blocks, before)


@pytest.mark.parametrize("first, count", [(2, 1), (0, 3), (1, 2)])
def test_blocks_outside_of_the_grant(make: Make, first: int, count: int) -> None:
    a, b = pair(make)
    b.hub.expect(1, "a", 1, [10, 11])
    a.push(b, 1, range(count), range(20, 20 + count), first=first)
    assert not a.wait_pushed(1)[0].ok
    assert [event.ok for event in b.arrived(1)] == [False], "its owner should know"


def test_no_page_is_filled_twice(make: Make) -> None:
    a, b = pair(make)
    b.hub.expect(1, "a", 1, [10, 11])
    a.push(b, 1, [0, 1], [10, 11])
    assert a.wait_pushed(1)[0].ok
    a.push(b, 1, [0], [11], first=1)
    assert [event.ok for event in a.wait_pushed(1, 2)] == [True, False]


def test_damage_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(make)
    seeds = itertools.count()
    monkeypatch.setattr(copying, "new_digest", lambda: xxhash.xxh3_64(seed=next(seeds)))
    b.hub.expect(1, "a", 1, [10, 11])
    a.push(b, 1, [0, 1], [10, 11])
    assert not a.wait_pushed(1)[0].ok
    assert b.arrived(1) == [Arrived(1, 0, 2, False)]


def test_other_layouts_are_refused(make: Make) -> None:
    a = make("a", epoch=1)
    b = make("bb", epoch=2, layout=replace(LAYOUT, model="finetuned"))
    a.hub.connect(b.peer)
    b.hub.expect(1, "a", 1, [0])
    a.push(b, 1, [0], [0])
    assert not a.wait_pushed(1)[0].ok and not b.arrived(1)


def test_peers_that_are_not_there(make: Make) -> None:
    a, b = pair(make)
    a.push(replace(b.peer, id="nobody"), 1, [0], [0])
    a.push(replace(b.peer, epoch=1), 2, [0], [0])  # an epoch that is over
    for transfer_id in (1, 2):
        assert not a.wait_pushed(transfer_id)[0].ok
    a.hub.forget_peer("bb")
    a.hub.forget_peer("bb")
    a.push(b, 3, [0], [0])
    assert not a.wait_pushed(3)[0].ok


def test_a_replaced_peer(make: Make) -> None:
    a, old = pair(make)
    old.hub.expect(1, "a", 1, [0])
    a.push(old, 1, [0], [0])
    assert a.wait_pushed(1)[0].ok
    new = make("bb", epoch=3)
    a.hub.connect(new.peer)
    a.push(old, 2, [0], [0])
    assert not a.wait_pushed(2)[0].ok
    new.hub.expect(3, "a", 1, [9])
    a.push(new, 3, [4], [9])
    assert a.wait_pushed(3)[0].ok
    np.testing.assert_array_equal(new.arena.blocks[9], a.arena.blocks[4])


def test_a_receiver_in_another_epoch_refuses(make: Make, transport: str) -> None:
    a, b = pair(make)
    b.hub.expect(1, "a", 1, [0])
    b.hub.epoch = 5  # restarted behind the same address, and `a` does not know yet
    a.push(replace(b.peer, epoch=2), 1, [0], [0])
    assert not a.wait_pushed(1)[0].ok
    assert not b.arrived(1)


def test_forgetting_peers_brings_everything_back(make: Make) -> None:
    a, b = pair(make, message_bytes=BLOCK, window_bytes=4 * BLOCK)
    b.hub.expect(1, "a", 1, range(40))
    with freeze(b):
        for i in range(40):
            a.push(b, 1, [i], [i], first=i)
        a.hub.forget_peer("bb")
        if a.hub.transport_of("bb") is None:
            wait_until(lambda: len(a.pushed(1)) >= 39, "pushes to a forgotten peer")
    assert len(a.wait_pushed(1, 40)) == 40
    assert len({event.first for event in a.pushed(1)}) == 40


def test_nothing_is_written_after_forget(make: Make, transport: str) -> None:
    if transport in ("shm", "nixl"):
        pytest.skip("the sender writes: only its own word ends that")
    big = replace(LAYOUT, num_layers=512)
    a = make("a", epoch=1, layout=big, message_bytes=1 << 20)
    b = make("bb", epoch=2, layout=big)
    a.hub.connect(b.peer)
    for transfer_id in range(20):
        b.hub.expect(transfer_id, "a", 1, range(64))
        a.push(b, transfer_id, range(64), range(64))
        if transfer_id % 2:
            wait_until(lambda t=transfer_id: bool(b.arrived(t) or a.pushed(t)), "a first arrival")
        b.hub.forget(transfer_id)
        b.arena.blocks[:] = transfer_id
        a.wait_pushed(transfer_id)
        assert (b.arena.blocks == transfer_id).all()


def test_closing_with_pushes_under_way(make: Make) -> None:
    a, b = pair(make, message_bytes=BLOCK, window_bytes=2 * BLOCK)
    b.hub.expect(1, "a", 1, range(60))
    jobs: list[Push] = []
    with freeze(b):
        jobs += [a.push(b, 1, [i], [i], first=i) for i in range(60)]
        closing = threading.Thread(target=a.hub.close)
        closing.start()
        closing.join(0.2)  # inproc waits for the copy under way
    closing.join()
    jobs.append(a.push(b, 1, [0], [0], first=60))  # too late
    assert sorted(event.first for event in a.pushed(1)) == list(range(61))
    a.hub.close()
    a.hub.forget_peer("bb")
    a.hub.cancel(1)


def test_closing_leaves_nothing_behind(transport: str) -> None:
    def cycle() -> tuple[str, ...]:
        a, b = Node("a", [transport], epoch=1), Node("bb", [transport], epoch=2)
        a.hub.connect(b.peer)
        b.hub.connect(a.peer)
        b.hub.expect(1, "a", 1, range(64))
        a.push(b, 1, range(64), range(64))
        assert a.wait_pushed(1)[0].ok
        names = a.arena.name or "", b.arena.name or ""
        a.close()
        b.close()
        return names

    cycle()  # starts what pyzmq keeps for the process's life
    files, threads = open_files(), threading.active_count()
    for _ in range(3):
        names = cycle()
    wait_until(lambda: threading.active_count() <= threads, "threads to end")
    wait_until(lambda: open_files() <= files, "files to close")
    assert not any((SHM / name).exists() for name in names)


def test_a_secret_keeps_strangers_out(make: Make, transport: str) -> None:
    keys = CurveKeys.derive("secret", 1)
    a, b = pair(make, keys=keys)
    b.hub.expect(1, "a", 1, [0])
    a.push(b, 1, [3], [0])
    assert a.wait_pushed(1)[0].ok
    if transport == "inproc":
        return
    stranger = make("a", epoch=1, stall_timeout_s=0.3)
    stranger.hub.connect(b.peer)
    b.hub.expect(2, "a", 1, [0])
    stranger.push(b, 2, [3], [0])
    assert not stranger.wait_pushed(2)[0].ok and not b.arrived(2)


@pytest.fixture(params=BETWEEN_PROCESSES)
def child(request: pytest.FixtureRequest) -> Iterator[ChildReceiver]:
    receiver = ChildReceiver(request.param, 64)
    yield receiver
    receiver.close()


@pytest.mark.parametrize("how", ["killed", "stopped", "killed and known"])
def test_a_receiver_that_dies(child: ChildReceiver, how: str) -> None:
    a = Node(
        "a", list(child.peer.endpoints), epoch=1, message_bytes=BLOCK, window_bytes=4 * BLOCK,
        stall_timeout_s=10.0 if how == "killed and known" else 1.0,
    )  # fmt: skip
    try:
        a.hub.connect(child.peer)
        a.push(child.peer, 1, range(8), range(8))
        assert a.wait_pushed(1)[0].ok
        kill = signal.SIGSTOP if how == "stopped" else signal.SIGKILL
        child.process.send_signal(kill)
        if kill == signal.SIGKILL:
            child.process.wait()
        else:
            os.waitid(os.P_PID, child.process.pid, os.WSTOPPED)
        for i in range(8, 40):
            a.push(child.peer, 1, [i], [i], first=i)
        if how == "killed and known":
            a.hub.forget_peer("child")
        events = a.wait_pushed(1, 33)
        assert [event.ok for event in events] == [True] + [False] * 32
        assert {event.first for event in events} == {0, *range(8, 40)}
    finally:
        a.close()


def test_grants_are_only_opened_once() -> None:
    grant = Grant(1, "a", 1, (4, 5))
    assert grant.filled == bytearray(2) and grant.open
