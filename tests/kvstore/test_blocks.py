"""BlockPool against a naive model of the same rules."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore.blocklog import BlockLog
from kvstore.blocks import BlockPool
from pd.errors import NoFreeBlocksError


def key(name: object) -> bytes:
    return repr(name).encode().ljust(32)


class PoolMachine(RuleBasedStateMachine):
    """The model: holders as a list of lists, the cache as a dict, use as an ordered list."""

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, 4)
        self.tables: list[list[int]] = []  # what each holder holds
        self.cached: dict[bytes, int] = {}
        self.idle: list[int] = []  # cached and unheld, first to be evicted first
        self.chains = 0

    def held(self, block: int) -> int:
        return sum(table.count(block) for table in self.tables)

    @property
    def num_unheld(self) -> int:
        return self.pool.num_blocks - len({b for table in self.tables for b in table})

    @rule(count=st.integers(0, 14))
    def allocate(self, count: int) -> None:
        assert self.pool.can_allocate(count) == (count <= self.num_unheld)
        if count > self.num_unheld:
            with pytest.raises(NoFreeBlocksError, match=f"{count} blocks wanted"):
                self.pool.allocate(count)
            return
        blank = self.num_unheld - len(self.idle)
        blocks = self.pool.allocate(count)
        assert len(set(blocks)) == count and not any(self.held(block) for block in blocks)
        evicted, self.idle = (
            self.idle[: max(0, count - blank)],
            self.idle[max(0, count - blank) :],
        )
        assert set(evicted) == {b for b in blocks if b in self.cached.values()}
        self.cached = {k: b for k, b in self.cached.items() if b not in evicted}
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        start = data.draw(st.integers(0, len(table)))
        self.pool.hold(table[start:])
        self.tables.append(table[start:])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        """Give a table's blocks names of a chain, sometimes one that exists already."""
        table = data.draw(st.sampled_from(self.tables))
        self.chains += data.draw(st.booleans())
        for depth, block in enumerate(table):
            name = key((self.chains, depth))
            if name not in self.cached and block in self.cached.values():
                with pytest.raises(ValueError, match="already registered"):
                    self.pool.register(block, name)
                continue
            self.pool.register(block, name)
            self.cached.setdefault(name, block)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)
        for block in reversed(table):
            if not self.held(block) and block in self.cached.values():
                self.idle.append(block)

    @rule(chain=st.integers(0, 5), length=st.integers(0, 6))
    def match(self, chain: int, length: int) -> None:
        names = [key((chain, depth)) for depth in range(length)]
        expected = []
        for name in names:
            if name not in self.cached:
                break
            expected.append(self.cached[name])
        assert self.pool.peek(names) == len(expected)
        assert self.pool.match(names) == expected
        self.idle = [block for block in self.idle if block not in expected]
        self.tables.append(expected)

    @rule()
    def clear(self) -> None:
        self.pool.clear_cache()
        self.cached.clear()
        self.idle.clear()

    @rule(data=st.data())
    def misuse(self, data: st.DataObject) -> None:
        """Letting go of what is not held is refused and changes nothing."""
        unheld = [b for b in range(self.pool.num_blocks) if not self.held(b)]
        table = data.draw(st.sampled_from(self.tables)) if self.tables else []
        bad = data.draw(st.sampled_from([-1, self.pool.num_blocks, *unheld]))
        with pytest.raises(ValueError, match=f"block {bad} "):
            self.pool.release([*table, bad])
        with pytest.raises(ValueError, match=f"block {bad} "):
            self.pool.hold([*table, bad])
        with pytest.raises(ValueError, match=f"block {bad} "):
            self.pool.register(bad, b"x")

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert self.pool.num_free == self.num_unheld
        assert self.pool.num_cached == len(self.cached)
        for block in range(self.pool.num_blocks):
            assert self.pool.holds(block) == self.held(block)
            assert self.pool.is_shared(block) == (self.held(block) > 1)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    pool = BlockPool(4, 16)
    table = pool.allocate(4)
    for depth, block in enumerate(table):
        pool.register(block, key(depth))
    pool.release(table)
    assert pool.num_free == pool.num_cached == 4
    assert [pool.allocate(1)[0] for _ in range(4)] == table[::-1]


def test_least_recently_used_is_evicted_first() -> None:
    pool = BlockPool(3, 16)
    a, b, c = pool.allocate(3)
    for block, name in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.register(block, name)
        pool.release([block])
    pool.peek([b"a"])  # looking is not using
    pool.release(pool.match([b"b"]))
    assert [pool.allocate(1)[0] for _ in range(3)] == [a, c, b]


def test_blocks_without_content_go_first() -> None:
    pool = BlockPool(3, 16)
    (cached,) = pool.allocate(1)
    pool.register(cached, b"a")
    pool.release([cached])
    assert cached not in pool.allocate(2)
    assert pool.num_cached == 1
    assert pool.allocate(1) == [cached]
    assert pool.num_cached == 0


def test_release_with_a_block_held_twice_in_one_table() -> None:
    pool = BlockPool(2, 16)
    (block,) = pool.allocate(1)
    pool.hold([block])
    with pytest.raises(ValueError, match=f"block {block} was released more often"):
        pool.release([block, block, block])
    assert pool.holds(block) == 2
    pool.release([block, block])
    pool.check()
    assert pool.num_free == 2


def test_without_a_prefix_cache() -> None:
    pool = BlockPool(2, 16, prefix_cache=False)
    (block,) = pool.allocate(1)
    pool.register(block, b"a")
    assert pool.match([b"a"]) == [] and pool.num_cached == 0
    pool.release([block])
    pool.check()


@pytest.mark.parametrize("sizes", [(0, 16), (4, 0), (-1, 16)])
def test_impossible_pools(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(*sizes)
    with pytest.raises(ValueError, match="cannot allocate -1"):
        BlockPool(1, 1).allocate(-1)


def test_many_are_registered_as_one_by_one_up_to_a_mistake() -> None:
    log = BlockLog()
    pool = BlockPool(4, 4, log=log)
    held = pool.allocate(3)
    pool.register(held[0], key("known"))
    with pytest.raises(ValueError, match="not held"):
        pool.register_all([held[1], held[2], 3, 0], [key("known"), key(1), key(2), key(3)])
    assert pool.cached_keys() == [key("known"), key(1)]
    (events,) = log.drain()
    assert events.stored == key("known")[:8] + key(1)[:8]
