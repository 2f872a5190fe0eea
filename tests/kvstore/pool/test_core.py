"""The pool's brain, with nodes, transports and the disk played by the test."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from kvstore.pool.core import PoolCore, PoolLimits
from kvstore.pool.effects import DiskErase, DiskOutcome, DiskRead, DiskWrite
from kvstore.prefix import pack_keys
from kvstore.transport.events import Arrived, Pushed
from pd.messages import (
    AbortTransfer,
    BlockEvents,
    Fetch,
    PeerLost,
    Put,
    PutGranted,
    Snapshot,
    Stopped,
    SyncBlocks,
)
from pd.outbox import CancelPush, Expect, Forget, Push, Send

T = TypeVar("T")
LEASE_S = 2.0


def key(i: int) -> bytes:
    return i.to_bytes(32, "little")


def keys(*numbers: int) -> bytes:
    return pack_keys([key(i) for i in numbers])


class Driver:
    """`sent` and `did` return what is new since they were last called."""

    def __init__(self, num_pages: int = 8, num_slots: int = 0, **limits: Any) -> None:
        self.core = PoolCore("pool-0", PoolLimits(num_pages, num_slots, lease_s=LEASE_S, **limits))
        self.core.epoch = 7
        self.now = 0.0
        self.pending: list[Any] = []

    def hear(self, message: Any, sender: str = "p0") -> None:
        self.core.on_message(sender, message, self.now)
        self.core.check()

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.core.tick(self.now)
        self.core.check()

    def sent(self, kind: type[T]) -> list[T]:
        found = self._take(lambda e: isinstance(e, Send) and isinstance(e.message, kind))
        return [effect.message for effect in found]

    def did(self, kind: type[T]) -> list[T]:
        return self._take(lambda e: isinstance(e, kind))

    def _take(self, wanted: Any) -> list[Any]:
        self.pending += self.core.drain()
        found = [effect for effect in self.pending if wanted(effect)]
        self.pending = [effect for effect in self.pending if effect not in found]
        return found

    def put(self, transfer_id: int, *numbers: int, land: bool = True) -> PutGranted:
        self.hear(Put(transfer_id, 3, keys(*numbers)))
        (granted,) = self.sent(PutGranted)
        if land and granted.blocks:
            self.arrive(transfer_id, 0, len(granted.blocks))
        return granted

    def arrive(self, transfer_id: int, first: int, count: int, *, ok: bool = True) -> None:
        self.core.on_transfer(Arrived(transfer_id, first, count, ok), self.now)
        self.core.check()

    def fetch(self, transfer_id: int, *numbers: int) -> None:
        blocks = tuple(range(100, 100 + len(numbers)))
        self.hear(Fetch(transfer_id, 4, keys(*numbers), blocks), sender="d0")

    def pushed(self, push: Push, *, ok: bool = True) -> None:
        self.core.on_transfer(Pushed(push.transfer_id, push.first, len(push.src), ok), self.now)
        self.core.check()

    def disk_done(self, effect: DiskWrite | DiskRead, *, ok: bool = True) -> None:
        self.core.on_disk(
            DiskOutcome(
                "write" if isinstance(effect, DiskWrite) else "read", effect.slot, effect.key, ok
            )
        )
        self.core.check()


def test_what_was_put_is_given_to_who_asks() -> None:
    pool = Driver()
    granted = pool.put(1, 10, 11, 12)
    assert granted.places == (0, 1, 2)
    (expect,) = pool.did(Expect)
    assert (expect.sender, expect.sender_epoch, expect.blocks) == ("p0", 3, granted.blocks)
    assert pool.did(Forget)
    pool.fetch(2, 10, 11, 12)
    (push,) = pool.did(Push)
    assert (push.receiver, push.receiver_epoch) == ("d0", 4)
    assert push.src == granted.blocks and push.dst == (100, 101, 102)
    pool.pushed(push)
    assert not pool.sent(Stopped)  # it has all it wanted, and knows
    pool.core.check_idle()


def test_blocks_are_not_found_before_they_were_verified() -> None:
    pool = Driver()
    pool.put(1, 10, 11, 12, land=False)
    pool.arrive(1, 1, 2)  # the first is missing: the others are no prefix of anything yet
    pool.fetch(2, 10)
    assert pool.sent(Stopped) == [Stopped(2)]
    pool.arrive(1, 0, 1)
    pool.fetch(3, 10, 11, 12)
    assert len(pool.did(Push)[0].src) == 3


def test_only_what_is_new_is_taken() -> None:
    pool = Driver()
    pool.put(1, 10, 11)
    assert pool.put(2, 10, 11).places == ()
    assert pool.put(3, 10, 11, 12, land=False).places == (2,)
    assert pool.put(4, 12, 13, land=False).places == (1,), "12 is on its way from somebody else"


def test_a_fetch_gets_the_leading_blocks_that_are_there() -> None:
    pool = Driver()
    pool.put(1, 10, 11)
    pool.fetch(2, 10, 11, 12, 13)
    (push,) = pool.did(Push)
    assert len(push.src) == 2
    assert not pool.sent(Stopped)
    pool.pushed(push)
    assert pool.sent(Stopped) == [Stopped(2)]
    pool.fetch(3, 9, 10)
    assert pool.sent(Stopped) == [Stopped(3)] and not pool.did(Push)


def test_a_block_that_is_sent_is_not_evicted() -> None:
    pool = Driver(num_pages=2)
    pool.put(1, 10, 11)
    pool.fetch(2, 10, 11)
    (push,) = pool.did(Push)
    assert pool.put(3, 12).places == ()
    assert pool.core.counters["no_room"] == 1
    pool.pushed(push)
    assert pool.put(4, 12).places == (0,)
    assert pool.core.counters["evicted"] == pool.core.counters["dropped"] == 1


def test_a_prompt_loses_its_last_block_first() -> None:
    pool = Driver(num_pages=3)
    pool.put(1, 10, 11, 12)
    pool.put(2, 20)
    pool.fetch(3, 10, 11, 12)
    (push,) = pool.did(Push)
    assert len(push.src) == 2
    pool.pushed(push)
    pool.put(4, 21)  # 20 was put before the others were asked for
    pool.fetch(5, 10, 11)
    assert len(pool.did(Push)[0].src) == 2


def test_a_block_is_not_evicted_while_the_rest_of_its_prompt_comes() -> None:
    pool = Driver(num_pages=3)
    pool.put(1, 10, 11, land=False)
    pool.arrive(1, 0, 1)
    pool.put(2, 20)
    assert pool.put(3, 30, land=False).places == (0,), "in place of 20"
    assert pool.put(4, 40, land=False).places == ()
    pool.fetch(5, 10)
    assert pool.did(Push), "findable meanwhile"


def test_what_changes_is_reported_and_reported_again() -> None:
    pool = Driver(num_pages=2)
    pool.put(1, 10, 11)
    pool.tick(1.0)
    (events,) = pool.sent(BlockEvents)
    assert (events.seq, events.tier, events.reset) == (1, "dram", False)
    assert {events.stored[i : i + 8] for i in (0, 8)} == {key(10)[:8], key(11)[:8]}
    pool.put(2, 12)
    pool.tick(1.0)
    (events,) = pool.sent(BlockEvents)
    assert events.seq == 2 and events.stored == key(12)[:8] and len(events.removed) == 8
    pool.hear(SyncBlocks(), sender="coordinator")
    pool.tick(1.0)
    (events,) = pool.sent(BlockEvents)
    assert (events.seq, events.reset) == (3, True) and len(events.stored) == 16
    assert pool.sent(Snapshot)[-1].snapshot.cached_blocks == 2


# ---------------------------------------------------------------- when a peer goes wrong
def test_damaged_blocks_are_not_kept() -> None:
    pool = Driver()
    pool.put(1, 10, 11, land=False)
    pool.arrive(1, 0, 2, ok=False)
    assert [stop.transfer_id for stop in pool.sent(AbortTransfer)] == [1]
    pool.fetch(2, 10)
    assert pool.sent(Stopped) == [Stopped(2)]
    pool.hear(Stopped(1))
    pool.core.check_idle()
    assert pool.core.tiers.num_free_pages == 8


def test_a_silent_giver_is_given_up_but_its_pages_wait_for_its_word() -> None:
    pool = Driver()
    pool.put(1, 10, 11, land=False)
    pool.arrive(1, 0, 1)
    pool.tick(LEASE_S + 0.1)
    assert [stop.transfer_id for stop in pool.sent(AbortTransfer)] == [1]
    assert pool.core.tiers.num_free_pages == 6
    pool.tick(LEASE_S + 0.1)
    assert [stop.transfer_id for stop in pool.sent(AbortTransfer)] == [1], "asked again"
    pool.hear(PeerLost("p0", 2), sender="coordinator")  # an earlier process of that name
    assert pool.core.tiers.num_free_pages == 6
    pool.hear(PeerLost("p0", 3), sender="coordinator")
    assert pool.core.tiers.num_free_pages == 7
    pool.fetch(2, 10)
    assert pool.did(Push), "what had arrived is kept"


def test_a_receiver_that_gives_up_or_dies() -> None:
    pool = Driver()
    pool.put(1, 10, 11)
    pool.fetch(2, 10, 11)
    (push,) = pool.did(Push)
    pool.hear(AbortTransfer(2, "too slow"), sender="d0")
    assert pool.did(CancelPush) == [CancelPush(2)] and not pool.sent(Stopped)
    pool.pushed(push, ok=False)
    assert pool.sent(Stopped) == [Stopped(2)]
    pool.hear(AbortTransfer(2, "too slow"), sender="d0")
    assert pool.sent(Stopped) == [Stopped(2)], "also of a fetch it no longer knows"
    pool.fetch(3, 10, 11)
    (push,) = pool.did(Push)
    pool.hear(PeerLost("d0", 4), sender="coordinator")
    pool.pushed(push, ok=False)
    pool.core.check_idle()


def test_a_message_it_has_no_use_for_is_an_error() -> None:
    with pytest.raises(TypeError, match="no use for Snapshot"):
        pool = Driver()
        pool.hear(Snapshot(pool.core.snapshot()))


# ---------------------------------------------------------------- the disk behind it
def spilled(pool: Driver) -> None:
    """Let the disk write everything that waits."""
    while True:
        pool.tick()
        writes = pool.did(DiskWrite)
        if not writes:
            return
        for write in writes:
            pool.disk_done(write)


def test_an_evicted_block_is_read_back_from_the_disk() -> None:
    pool = Driver(num_pages=2, num_slots=8)
    first = pool.put(1, 10, 11)
    pool.tick()
    writes = pool.did(DiskWrite)
    assert {(w.key, w.page) for w in writes} == {
        (key(10), first.blocks[0]), (key(11), first.blocks[1]),
    }  # fmt: skip
    assert pool.put(2, 12).places == (), "both pages are being written"
    for write in writes:
        pool.disk_done(write)
    pool.put(3, 12, 13)
    assert pool.core.counters["dropped"] == 0
    spilled(pool)
    pool.fetch(4, 10, 11)
    pool.tick()
    reads = pool.did(DiskRead)
    assert [r.key for r in reads] == [key(10), key(11)] and not pool.did(Push)
    pool.disk_done(reads[1])
    assert not pool.did(Push), "the second alone is no prefix"
    pool.disk_done(reads[0])
    (push,) = pool.did(Push)
    assert push.src == (reads[0].page, reads[1].page)
    pool.pushed(push)
    pool.core.check_idle()


def test_a_block_wanted_twice_is_read_once() -> None:
    pool = Driver(num_pages=4, num_slots=8)
    pool.core.recovered([(0, key(10)), (5, key(11))])
    pool.fetch(1, 10)
    pool.fetch(2, 10, 11)
    pool.tick()
    reads = pool.did(DiskRead)
    assert len(reads) == 2
    for read in reads:
        pool.disk_done(read)
    assert {push.transfer_id for push in pool.did(Push)} == {1, 2}


def test_a_damaged_block_on_disk_is_a_miss_and_forgotten() -> None:
    pool = Driver(num_pages=4, num_slots=8)
    pool.core.recovered([(0, key(10)), (5, key(11))])
    pool.fetch(1, 10, 11)
    pool.tick()
    good, bad = pool.did(DiskRead)
    pool.disk_done(good)
    pool.disk_done(bad, ok=False)
    (push,) = pool.did(Push)
    assert push.src == (good.page,)
    pool.pushed(push)
    assert pool.sent(Stopped) == [Stopped(1)]
    assert pool.did(DiskErase) == [DiskErase(5)]
    pool.fetch(2, 11)
    assert pool.sent(Stopped) == [Stopped(2)]
    pool.core.check_idle()


def test_a_disk_that_fails_to_write_loses_only_what_is_evicted() -> None:
    pool = Driver(num_pages=2, num_slots=2)
    pool.put(1, 10, 11)
    pool.tick()
    for write in pool.did(DiskWrite):
        pool.disk_done(write, ok=False)
    assert pool.core.counters["disk_errors"] == 2
    pool.fetch(2, 10, 11)
    assert len(pool.did(Push)[0].src) == 2
    pool.core.check()


def test_a_full_disk_evicts_but_not_what_is_being_read() -> None:
    pool = Driver(num_pages=3, num_slots=1)
    pool.put(1, 10)
    spilled(pool)
    pool.put(2, 11, 12, 13)  # evicts 10 from memory
    pool.fetch(3, 10)
    pool.tick()
    assert pool.core.counters["disk_evicted"] <= 1
    pool.core.check()


def test_a_restart_finds_the_disk_again() -> None:
    pool = Driver(num_pages=2, num_slots=4)
    pool.core.recovered([(3, key(10)), (1, key(11))])
    pool.tick(1.0)
    (events,) = pool.sent(BlockEvents)
    assert events.tier == "disk" and len(events.stored) == 16
    assert pool.put(1, 10, 11).places == ()
    assert pool.core.snapshot().disk_blocks == 2
