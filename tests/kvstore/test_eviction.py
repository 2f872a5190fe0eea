"""Eviction policies: what they may never do, against a set; what they should do, on patterns."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.adaptive_lru import AdaptiveLRU
from kvstore.eviction import DEFAULT_EVICTION, LRU, S3FIFO, make_eviction
from pd.errors import ConfigError

POLICIES = [AdaptiveLRU, S3FIFO, LRU]
CAPACITY = 12
KEYS = list(range(30))


class PolicyMachine(RuleBasedStateMachine):
    """The model: the set of what is there, and which of it is busy."""

    policy_class: type[Any]

    def __init__(self) -> None:
        super().__init__()
        self.policy = self.policy_class(CAPACITY)
        self.there: set[int] = set()
        self.busy: set[int] = set()

    @rule(key=st.sampled_from(KEYS))
    def use(self, key: int) -> None:
        if key in self.there:
            self.policy.touch(key)
            return
        if len(self.there) == CAPACITY:
            self.evict()
        if len(self.there) == CAPACITY:
            return
        self.policy.insert(key)
        self.there.add(key)

    @rule(keys=st.sets(st.sampled_from(KEYS)))
    def make_busy(self, keys: set[int]) -> None:
        self.busy = keys

    @rule()
    def all_busy(self) -> None:
        self.busy = set(KEYS)

    @rule()
    def evict(self) -> None:
        idle = self.there - self.busy
        victim = self.policy.evict(self.busy.__contains__)
        if victim is None:
            assert not idle, f"{idle} could have gone"
            return
        assert victim in idle
        self.there.remove(victim)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.there)))
        self.policy.remove(key)
        self.there.remove(key)

    @rule(key=st.sampled_from(KEYS))
    def ask_for_what_is_not_there(self, key: int) -> None:
        if key not in self.there:
            for ask in (self.policy.touch, self.policy.remove):
                with pytest.raises(KeyError):
                    ask(key)

    @invariant()
    def knows_what_is_there(self) -> None:
        assert len(self.policy) == len(self.there)
        assert {key for key in KEYS if key in self.policy} == self.there


def machine(policy: type[Any]) -> type[Any]:
    made = type(f"{policy.__name__}Machine", (PolicyMachine,), {"policy_class": policy})
    made.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    return made.TestCase  # type: ignore[no-any-return]


TestAdaptiveLRU = machine(AdaptiveLRU)
TestS3FIFO = machine(S3FIFO)
TestLRU = machine(LRU)


def nobody(key: object) -> bool:
    return False


def serve(policy: Any, capacity: int, prompt: list[int], *, pinned: bool = True) -> int:
    """Hits: the leading blocks that are there. Then all of it is, if there is room."""
    hits = next((i for i, key in enumerate(prompt) if key not in policy), len(prompt))
    busy = set(prompt).__contains__ if pinned else nobody
    while len(policy) + sum(key not in policy for key in prompt) > capacity:
        if policy.evict(busy) is None:
            break
    for key in reversed(prompt):
        if key in policy:
            policy.touch(key)
        else:
            policy.insert(key)
    return hits


def test_lru_is_by_recency() -> None:
    policy: LRU[int] = LRU(3)
    for key in (1, 2, 3):
        policy.insert(key)
    policy.touch(1)
    assert [policy.evict(nobody) for _ in range(4)] == [2, 3, 1, None]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_an_adaptive_lru_that_has_learnt_nothing_is_lru(seed: int) -> None:
    rng = random.Random(seed)
    lru: LRU[int] = LRU(20)
    adaptive: AdaptiveLRU[int] = AdaptiveLRU(20)
    for _ in range(80):  # fewer outcomes than a lesson has
        key = rng.randrange(40)
        if key in lru:
            lru.touch(key)
            adaptive.touch(key)
            continue
        if len(lru) == 20:
            assert lru.evict(nobody) == adaptive.evict(nobody)
        lru.insert(key)
        adaptive.insert(key)


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_work_is_linear(policy_class: Callable[[int], Any], share: float) -> None:
    """Questions about being busy stay in proportion to evictions while some keys stay busy."""
    capacity, asked = 2_000, 0
    policy = policy_class(capacity)
    rng = random.Random(1)
    stuck = [key for key in range(capacity) if rng.random() < share]

    def busy(key: int) -> bool:
        nonlocal asked
        asked += 1
        return key < capacity and key in stuck_set

    stuck_set = set(stuck)
    for key in range(capacity):
        policy.insert(key)
    for key in range(capacity, 3 * capacity):
        assert policy.evict(busy) is not None
        policy.insert(key)
        if stuck and key % 10 == 0:
            policy.touch(rng.choice(stuck))
    assert asked <= 20 * 2 * capacity


@pytest.mark.parametrize("policy_class", POLICIES)
def test_all_busy_is_found_out_in_one_round(policy_class: Callable[[int], Any]) -> None:
    policy, asked = policy_class(100), 0

    def busy(key: int) -> bool:
        nonlocal asked
        asked += 1
        return True

    for key in range(100):
        policy.insert(key)
        for _ in range(key % 7):
            policy.touch(key)
    assert policy.evict(busy) is None
    assert asked <= 220
    assert len(policy) == 100


@pytest.mark.parametrize("policy_class", POLICIES)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_prompts_lose_their_last_blocks_first(
    policy_class: Callable[[int], Any], data: st.DataObject
) -> None:
    """Chains that branch: with LRU and its kin what is there is always a tree with its root."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    capacity = rng.randrange(20, 60)
    policy = policy_class(capacity)
    parent: dict[int, int | None] = {}
    prompts: list[list[int]] = [[]]
    orphans = 0
    for step in range(150):
        start = rng.choice(prompts)
        prompt = start[: rng.randrange(len(start) + 1)]
        for _ in range(rng.randrange(1, 6)):
            key = len(parent)
            parent[key] = prompt[-1] if prompt else None
            prompt = [*prompt, key]
        prompt = prompt[: capacity // 2]
        serve(policy, capacity, prompt, pinned=False)
        prompts = [*prompts[-20:], prompt]
        orphans += sum(
            key in policy and above is not None and above not in policy
            for key, above in parent.items()
        )
        assert len(policy) <= capacity, step
    if policy_class is not S3FIFO:
        assert orphans == 0


@pytest.mark.parametrize("policy_class", [AdaptiveLRU, S3FIFO])
def test_a_flood_of_new_prompts_does_not_drive_out_what_is_used(
    policy_class: Callable[[int], Any],
) -> None:
    """Twelve prefixes asked for in turn, with more new blocks between than there is room for."""
    capacity = 1_000
    hot = [list(range(-100 * each - 40, -100 * each)) for each in range(12)]
    hits = {}
    for name, policy in (("lru", LRU[int](capacity)), ("other", policy_class(capacity))):
        fresh = count = 0
        for turn in range(900):
            prompt = hot[turn % 12] + list(range(fresh, fresh + 60))
            fresh += 60
            got = serve(policy, capacity, prompt)
            count += got if turn >= 600 else 0
        hits[name] = count
    assert hits["lru"] == 0
    assert hits["other"] > 0.9 * 300 * 40


def test_where_recency_is_all_the_adaptive_one_follows_lru() -> None:
    """Conversations of a few turns: blocks used twice are not worth more than those used once."""
    rng = random.Random(3)
    capacity = 800
    lru: LRU[int] = LRU(capacity)
    adaptive: AdaptiveLRU[int] = AdaptiveLRU(capacity)
    talks: list[list[int]] = []
    fresh, hits = 0, [0, 0]
    for _ in range(3_000):
        if len(talks) < 12 or rng.random() < 0.3:
            talks.append([])
        place = rng.randrange(min(len(talks), 12))
        talks[place] = talks[place] + list(range(fresh, fresh + 10))
        fresh += 10
        for i, policy in enumerate((lru, adaptive)):
            hits[i] += serve(policy, capacity, talks[place])
        if len(talks[place]) > 50:
            del talks[place]
    assert hits[1] >= 0.98 * hits[0]


def test_weights_never_fall_with_uses() -> None:
    rng = random.Random(5)
    policy: AdaptiveLRU[int] = AdaptiveLRU(100)
    for _ in range(20_000):
        start = int(rng.paretovariate(0.6)) % 3_000
        serve(policy, 100, list(range(start * 10, start * 10 + rng.randrange(1, 10))))
        assert policy.weights == sorted(policy.weights)
        assert policy.weights[0] == 1.0 and policy.weights[-1] <= 64
    assert policy.weights[-1] > 1.0


def test_ghosts_are_bounded() -> None:
    policy: AdaptiveLRU[int] = AdaptiveLRU(50)
    for start in range(0, 5_000, 10):
        serve(policy, 50, list(range(start, start + 10)))
        assert len(policy._ghosts) + len(policy._older_ghosts) <= 200
        assert len(policy._on_trial) <= 12
    s3: S3FIFO[int] = S3FIFO(50)
    for start in range(0, 5_000, 10):
        serve(s3, 50, list(range(start, start + 10)))
        assert len(s3._ghosts) <= 50


def test_policies_by_name() -> None:
    for name in ("adaptive", "s3fifo", "lru", DEFAULT_EVICTION):
        policy = make_eviction(name, 4)
        policy.insert(b"a")
        assert policy.evict(nobody) == b"a"
        assert policy.evict(nobody) is None
    with pytest.raises(ConfigError, match="'fifo' is not one of adaptive, s3fifo, lru"):
        make_eviction("fifo", 4)
