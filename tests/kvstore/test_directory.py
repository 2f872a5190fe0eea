"""PrefixDirectory against a dict of dicts, through gaps, duplicates, restarts and sweeps."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.directory import Coverage, Leading, PrefixDirectory
from pd.messages import BlockEvents
from pd.types import Tier

NAMES = ["a", "b", "c"]
TIERS: list[Tier] = ["node", "dram", "disk"]
# Three blocks to a shard and two shards, one of them the last; the largest key there is.
KEYS = [5, 5 + (1 << 12), 5 + (1 << 63), 0xFFF, 0x1FFF, 2**64 - 1]

keys = st.lists(st.sampled_from(KEYS), max_size=8)
names = st.sampled_from(NAMES)
tiers = st.sampled_from(TIERS)


def packed(keys: Iterable[int]) -> bytes:
    return b"".join(key.to_bytes(8, "little") for key in keys)


def events(
    seq: int,
    stored: Sequence[int],
    removed: Sequence[int] = (),
    tier: Tier = "node",
    reset: bool = False,
) -> BlockEvents:
    return BlockEvents(seq, reset, tier, packed(stored), packed(removed))


class DirectoryMachine(RuleBasedStateMachine):
    """The model: for each living holder its next number, whether in sync, and key -> tiers."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = PrefixDirectory()
        self.next_seq: dict[str, int] = {}
        self.in_sync: dict[str, bool] = {}
        self.blocks: dict[str, dict[int, set[Tier]]] = {}

    @rule(name=names)
    def join(self, name: str) -> None:
        self.directory.join(name)
        self.next_seq[name], self.in_sync[name], self.blocks[name] = 1, True, {}

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.directory.drop(name)
        for table in (self.next_seq, self.in_sync, self.blocks):
            table.pop(name, None)

    @rule(
        name=names, stored=keys, removed=keys, tier=tiers,
        skip=st.sampled_from([0, 0, 0, 0, 0, 0, 1, 5, -1, -2]), reset=st.integers(0, 5),
    )  # fmt: skip
    def tell(
        self, name: str, stored: list[int], removed: list[int], tier: Tier, skip: int, reset: int
    ) -> None:
        seq = self.next_seq.get(name, 1) + skip
        message = events(seq, stored, removed, tier, reset=reset == 0)
        taken = self.directory.apply(name, message)
        if name not in self.blocks:
            assert not taken
            return
        if skip < 0:  # seen before, or so old that a reset has made it void
            assert taken == self.in_sync[name]
            return
        if message.reset:
            self.blocks[name] = {}
            self.in_sync[name] = True
        elif skip or not self.in_sync[name]:
            assert not taken
            self.in_sync[name] = False
            return
        assert taken
        self.next_seq[name] = seq + 1
        mine = self.blocks[name]
        for key in removed:
            mine.get(key, set()).discard(tier)
        for key in stored:
            mine.setdefault(key, set()).add(tier)
        self.blocks[name] = {key: has for key, has in mine.items() if has}

    @rule(limit=st.integers(-1, 5000))
    def sweep(self, limit: int) -> None:
        self.directory.sweep(limit)

    @rule(prompt=keys)
    def lookup(self, prompt: list[int]) -> None:
        expected = {}
        for name, mine in self.blocks.items():
            count = next((i for i, key in enumerate(prompt) if key not in mine), len(prompt))
            slow = sum(mine[key] == {"disk"} for key in prompt[:count])
            if count:
                expected[name] = Leading(count, slow)
        assert self.directory.lookup(prompt) == Coverage(expected)

    @invariant()
    def counts(self) -> None:
        for name in NAMES:
            assert self.directory.num_blocks(name) == len(self.blocks.get(name, {}))
            assert self.directory.in_sync(name) == self.in_sync.get(name, False)
        assert set(self.directory.holders) == set(self.blocks)
        known = {key for mine in self.blocks.values() for key in mine}
        assert len(self.directory) >= len(known)

    def teardown(self) -> None:
        while self.directory.sweep(10_000):
            pass
        known = {key for mine in self.blocks.values() for key in mine}
        assert len(self.directory) == len(known), "a block of a holder that left remains"
        for prompt in ([key] for key in KEYS):
            self.lookup(prompt)


TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_long_prompts_over_many_holders(data: st.DataObject) -> None:
    """Chains with holes, in runs of equal and of different places."""
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    directory = PrefixDirectory()
    prompt = [rng.getrandbits(64) for _ in range(rng.randrange(1, 80))]
    has: dict[str, dict[int, set[Tier]]] = {}
    for number in range(rng.randrange(1, 12)):
        name = f"holder-{number}"
        directory.join(name)
        mine = has[name] = {}
        for seq, tier in enumerate(TIERS, start=1):
            chosen = [key for key in prompt[: rng.randrange(100)] if rng.random() < 0.97]
            assert directory.apply(name, events(seq, chosen, tier=tier))
            for key in chosen:
                mine.setdefault(key, set()).add(tier)
    for name in [name for name in has if rng.random() < 0.2]:
        directory.drop(name)
        del has[name]
    for _ in range(2):
        expected = {}
        for name, mine in has.items():
            count = next((i for i, key in enumerate(prompt) if key not in mine), len(prompt))
            if count:
                slow = sum(mine[key] == {"disk"} for key in prompt[:count])
                expected[name] = Leading(count, slow)
        assert directory.lookup(prompt).leading == expected
        while directory.sweep(rng.randrange(1, 5000)):
            pass


def test_a_holder_that_comes_back_during_a_sweep_keeps_its_new_blocks() -> None:
    directory = PrefixDirectory()
    prompt = list(range(10_000))
    for _ in range(3):
        directory.join("a")
        assert directory.num_blocks("a") == 0
        assert not directory.lookup(prompt).leading
        assert directory.apply("a", events(1, prompt))
        directory.sweep(2_000)  # part of a pass over what the life before left
        assert directory.lookup(prompt).leading == {"a": Leading(10_000, 0)}
    while directory.sweep(1_000):
        assert directory.lookup(prompt[:5000]).leading == {"a": Leading(5_000, 0)}
    assert len(directory) == directory.num_blocks("a") == 10_000
    directory.drop("a")
    while directory.sweep(1_000):
        assert not directory.lookup(prompt).leading
    assert len(directory) == 0


def test_slots_of_those_that_left_are_used_again() -> None:
    directory = PrefixDirectory()
    for life in range(200):
        directory.join("a")
        assert directory.apply("a", events(1, [life]))
        while directory.sweep(100_000):
            pass
    assert len(directory._names) <= 3


def test_sweeping_nothing_is_over_at_once() -> None:
    directory = PrefixDirectory()
    directory.join("a")
    directory.apply("a", events(1, [1, 2, 3]))
    assert directory.sweep(10) == 0
    directory.join("b")
    directory.drop("b")  # it had nothing, so nothing of it remains
    assert directory.sweep(10) == 0


def test_a_reset_repeated_does_not_forget_what_came_after() -> None:
    directory = PrefixDirectory()
    directory.join("a")
    reset = events(7, [1], reset=True)
    assert directory.apply("a", reset)
    assert directory.apply("a", events(8, [2]))
    assert directory.apply("a", reset)
    assert directory.lookup([1, 2]).leading == {"a": Leading(2, 0)}


def test_after_a_gap_only_a_reset_helps_and_not_an_old_one() -> None:
    directory = PrefixDirectory()
    directory.join("a")
    assert directory.apply("a", events(1, [1]))
    assert not directory.apply("a", events(3, [3]))
    assert not directory.apply("a", events(2, [2]))
    assert not directory.apply("a", events(4, [4]))
    assert not directory.apply("a", events(1, [9], reset=True))
    assert directory.lookup([1]).leading == {"a": Leading(1, 0)}, "what is known still serves"
    assert directory.apply("a", events(5, [1, 2, 3], reset=True))
    assert directory.apply("a", events(6, [4]))
    assert directory.lookup([1, 2, 3, 4]).leading == {"a": Leading(4, 0)}


def test_removals_come_first_within_a_message() -> None:
    directory = PrefixDirectory()
    directory.join("a")
    assert directory.apply("a", events(1, [1], removed=[1]))
    assert directory.lookup([1]).leading == {"a": Leading(1, 0)}


def test_blocks_that_share_a_key_only_misroute() -> None:
    """Two blocks with the same first 8 bytes: stored twice, removed once, removed again."""
    directory = PrefixDirectory()
    directory.join("a")
    assert directory.apply("a", events(1, [1, 1]))
    assert directory.num_blocks("a") == 1
    assert directory.apply("a", events(2, [], removed=[1]))
    assert directory.apply("a", events(3, [], removed=[1]))
    assert directory.num_blocks("a") == len(directory) == 0


@pytest.mark.parametrize("field", ["stored", "removed"])
def test_a_torn_key_is_refused_whole(field: str) -> None:
    directory = PrefixDirectory()
    directory.join("a")
    torn = {"stored": packed([1]), "removed": b"", field: b"123456789"}
    with pytest.raises(ValueError, match="block events of a: 9 bytes"):
        directory.apply("a", BlockEvents(1, True, "node", **torn))
    with pytest.raises(ValueError, match="no tier 'tape'"):
        directory.apply("a", BlockEvents(1, False, "tape", b"", b""))  # type: ignore[arg-type]
    assert directory.apply("a", events(1, [2]))


def test_a_set_of_places_is_kept_once() -> None:
    directory = PrefixDirectory()
    for number in range(300):
        directory.join(str(number))
    for number in range(300):
        for seq in range(1, 4):
            prompt = list(range(seq * 1000, seq * 1000 + 50))
            directory.apply(str(number), events(seq, prompt))
    sets = {id(places) for shard in directory._shards for places in shard.values()}
    assert len(sets) == 1
    assert len(directory.lookup(range(1000, 1050)).leading) == 300


def test_what_may_be_shared_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.directory._MAX_SHARED", 20_000)
    rng = random.Random(1)
    directory = PrefixDirectory()
    model: dict[str, set[int]] = {str(number): set() for number in range(40)}
    for name in model:
        directory.join(name)
    for seq in range(1, 4):
        for name, mine in model.items():
            chosen = [key for key in range(1_000) if rng.random() < 0.1]
            directory.apply(name, events(seq, chosen))
            mine.update(chosen)
            assert sum(map(len, directory._shared)) <= 20_000
    for key in range(1_000):
        having = {name for name, mine in model.items() if key in mine}
        assert set(directory.lookup([key]).leading) == having


def test_the_garbage_collector_does_not_look_into_the_table() -> None:
    """At full size it would stop the coordinator for a good part of a second."""
    directory = PrefixDirectory()
    for name in NAMES:
        directory.join(name)
        directory.apply(name, events(1, range(5_000)))
    directory.drop("a")
    while directory.sweep(10_000):
        pass
    assert not any(map(gc.is_tracked, directory._shards))
