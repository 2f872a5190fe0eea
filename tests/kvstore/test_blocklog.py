"""BlockLog: what a directory that reads every message believes is what the holder has."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.blocklog import MAX_KEYS, BlockLog
from kvstore.directory import PrefixDirectory
from pd.messages import BlockEvents
from pd.types import Tier

TIERS: list[Tier] = ["node", "dram", "disk"]
KEYS = [sha256(bytes([number])).digest() for number in range(8)]


def short(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")


class LogMachine(RuleBasedStateMachine):
    """A holder's tiers, its log, and a coordinator to which some messages never come."""

    def __init__(self) -> None:
        super().__init__()
        self.log = BlockLog()
        self.has: dict[Tier, set[bytes]] = {tier: set() for tier in TIERS}
        self.reported: dict[Tier, set[bytes]] = {tier: set() for tier in TIERS}
        self.directory = PrefixDirectory()
        self.directory.join("holder")
        self.lost = False

    @rule(key=st.sampled_from(KEYS), tier=st.sampled_from(TIERS))
    def flip(self, key: bytes, tier: Tier) -> None:
        if key in self.has[tier]:
            self.has[tier].remove(key)
            self.log.removed(key, tier)
        else:
            self.has[tier].add(key)
            self.log.stored(key, tier)

    @rule(limit=st.integers(1, 10), lose=st.integers(0, 9))
    def drain(self, limit: int, lose: int) -> None:
        before = len(self.log)
        messages = self.log.drain(limit)
        sizes = [len(message.stored) // 8 + len(message.removed) // 8 for message in messages]
        assert sum(sizes) == min(limit, before)
        assert len(self.log) == before - sum(sizes)
        for place, message in enumerate(messages):
            if place == lose:
                self.lost = True
                continue
            if message.reset:
                self.lost = False
            taken = self.directory.apply("holder", message)
            assert taken or self.lost

    @rule()
    def sync(self) -> None:
        self.log.resync((tier, key) for tier, keys in self.has.items() for key in keys)
        assert self.log
        assert len(self.log) == sum(map(len, self.has.values()))

    @precondition(lambda self: not self.log and not self.lost)
    @invariant()
    def the_directory_knows(self) -> None:
        for key in KEYS:
            tiers = {tier for tier in TIERS if key in self.has[tier]}
            leading = self.directory.lookup([short(key)]).leading
            assert bool(tiers) == ("holder" in leading)
            if tiers:
                assert leading["holder"].slow == (tiers == {"disk"})

    @invariant()
    def bounded(self) -> None:
        assert len(self.log) <= len(KEYS) * len(TIERS)

    def teardown(self) -> None:
        if self.lost:
            self.sync()
        self.drain(limit=1000, lose=1000)
        assert not self.log
        self.the_directory_knows()


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_is_undone_before_it_is_sent_is_not_sent() -> None:
    log = BlockLog()
    log.stored(KEYS[0], "dram")
    log.removed(KEYS[0], "dram")
    assert not log
    assert log.drain() == []
    log.stored(KEYS[0], "dram")
    log.drain()
    log.removed(KEYS[0], "dram")
    log.stored(KEYS[0], "dram")
    assert log.drain() == []


def test_a_move_between_tiers_is_two_changes() -> None:
    log = BlockLog()
    log.stored(KEYS[0], "dram")
    log.drain()
    log.stored(KEYS[0], "disk")
    log.removed(KEYS[0], "dram")
    messages = {message.tier: message for message in log.drain()}
    assert messages["disk"].stored == messages["dram"].removed == KEYS[0][:8]


def test_messages_are_numbered_bounded_and_in_order() -> None:
    log = BlockLog()
    keys = [number.to_bytes(32, "little") for number in range(2 * MAX_KEYS + 10)]
    for key in keys:
        log.stored(key, "node")
    messages = log.drain(10)
    messages += log.drain(len(keys))
    assert [len(message.stored) // 8 for message in messages] == [10, MAX_KEYS, MAX_KEYS]
    assert [message.seq for message in messages] == [1, 2, 3]
    assert b"".join(message.stored for message in messages) == b"".join(key[:8] for key in keys)


def test_a_holder_that_has_nothing_can_still_say_so() -> None:
    log = BlockLog()
    log.stored(KEYS[0], "node")
    log.resync([])
    assert log
    assert log.drain() == [BlockEvents(1, True, "node", b"", b"")]
    assert not log


def test_a_second_sync_replaces_the_first() -> None:
    log = BlockLog()
    log.resync([("dram", KEYS[0]), ("disk", KEYS[0])])
    log.drain(1)
    log.resync([("disk", KEYS[1])])
    assert log.drain() == [BlockEvents(2, True, "disk", KEYS[1][:8], b"")]


def test_mistakes_are_named() -> None:
    log = BlockLog()
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        log.stored(b"abc", "node")
    with pytest.raises(ValueError, match="cannot drain 0"):
        log.drain(0)
