"""The decode scheduler by itself: growth, copy-on-write, preemption, endings in mid-step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq

from cell.workload import make_request
from hypothesis import given
from hypothesis import strategies as st

from decode_node.scheduler import DecodeScheduler
from kvstore.blocks import BlockPool
from kvstore.prefix import block_hashes
from kvstore.table import acquire, share
from pd.types import Sampled, Sequence, Work

ROOT = b"root"
numbers = itertools.count()


def start(
    scheduler: DecodeScheduler,
    num_prompt: int,
    *,
    n: int = 1,
    max_tokens: int = 100,
    priority: int = 0,
    arrival_s: float = 0.0,
    eos: tuple[int, ...] = (),
) -> list[Sequence]:
    """Sequences with a computed prompt of their own and a first token, in the batch."""
    number = next(numbers)
    prompt = tuple(number * 1000 + i for i in range(num_prompt))
    request = make_request(
        f"r{number}", prompt, n=n, max_tokens=max_tokens, priority=priority,
        arrival_s=arrival_s, eos=eos,
    )  # fmt: skip
    pool, hashes = scheduler.pool, block_hashes(prompt, scheduler.pool.block_size, ROOT)
    room = acquire(pool, hashes, num_prompt, compute=False)
    assert room is not None
    work = Work(request, tuple(range(n)))
    seqs = [Sequence(work, index) for index in range(n)]
    share(pool, room[0], seqs)
    for seq in seqs:
        seq.append(1)
        seq.num_computed = num_prompt
        seq.hashes = [ROOT, *hashes]
        scheduler.start(seq, shared=n > 1)
    return seqs


def make(num_blocks: int = 20, block_size: int = 4) -> DecodeScheduler:
    return DecodeScheduler(BlockPool(num_blocks, block_size), max_num_seqs=64)


def commit(scheduler: DecodeScheduler, decodes: Seq[Sequence], token: int = 5) -> list[Sequence]:
    """Returns the sequences that got a token."""
    events = scheduler.commit(decodes, [Sampled(token)] * len(decodes))
    return [seq for seq, _, _ in events]


def step(scheduler: DecodeScheduler) -> list[Sequence]:
    decodes, _, _ = scheduler.plan()
    return commit(scheduler, decodes)


def end(scheduler: DecodeScheduler) -> None:
    """Remove everything: then nothing may be held."""
    for seq in list(scheduler.running.values()):
        scheduler.remove(seq)
    assert scheduler.num_tokens == 0
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    scheduler.pool.check()


def test_a_block_is_taken_only_at_a_blocks_edge() -> None:
    scheduler = make()
    (seq,) = start(scheduler, 3)
    lengths = []
    for _ in range(10):
        scheduler.plan()
        lengths.append(len(seq.blocks))
        commit(scheduler, [seq])
    # KV positions 3, 4, 5, ... are written: a new block at 4, 8 and 12.
    assert lengths == [1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    end(scheduler)


def test_a_prompt_that_ends_on_an_edge_grows_at_once() -> None:
    scheduler = make()
    (seq,) = start(scheduler, 8)
    version = seq.table_version
    scheduler.plan()
    assert len(seq.blocks) == 3 and seq.table_version == version + 1
    end_of_step = commit(scheduler, [seq])
    assert end_of_step == [seq]
    end(scheduler)


def test_full_blocks_become_findable_under_the_chained_hash_of_their_tokens() -> None:
    scheduler = make()
    (seq,) = start(scheduler, 3)
    for _ in range(7):
        step(scheduler)
    hashes = block_hashes(seq.tokens[: seq.num_computed], 4, ROOT)
    assert len(hashes) == 2 and scheduler.pool.peek(hashes) == 2
    end(scheduler)


def test_outputs_that_share_a_block_copy_it_before_they_write() -> None:
    scheduler = make()
    seqs = start(scheduler, 6, n=3)
    shared = seqs[0].blocks[1]
    assert all(seq.blocks[1] == shared for seq in seqs)
    decodes, copies, preempted = scheduler.plan()
    written = [seq.blocks[1] for seq in decodes]
    assert len(set(written)) == 3 and not preempted
    assert all(source == shared for source, _ in copies)
    assert {target for _, target in copies} == set(written) - {shared}
    assert all(seq.blocks[0] == seqs[0].blocks[0] for seq in seqs), "full blocks stay shared"
    assert scheduler.pool.holds(shared), "the copy reads it during the step"
    commit(scheduler, decodes)
    assert scheduler.plan()[1] == (), "one copy is enough"
    commit(scheduler, decodes)
    end(scheduler)


def test_outputs_whose_prompt_ends_on_an_edge_copy_nothing() -> None:
    scheduler = make()
    seqs = start(scheduler, 8, n=2)
    decodes, copies, _ = scheduler.plan()
    assert copies == () and seqs[0].blocks[2] != seqs[1].blocks[2]
    commit(scheduler, decodes)
    end(scheduler)


def test_the_last_holder_of_a_shared_block_writes_in_place() -> None:
    scheduler = make()
    first, second = start(scheduler, 6, n=2)
    scheduler.remove(second)
    block = first.blocks[1]
    decodes, copies, _ = scheduler.plan()
    assert copies == () and first.blocks[1] == block
    commit(scheduler, decodes)
    end(scheduler)


def test_copies_of_a_preempted_sequence_are_not_made() -> None:
    scheduler = make(num_blocks=5)
    a, b, c = start(scheduler, 6, n=3)  # two blocks, shared by three
    other = start(scheduler, 4)[0]  # one block, wants another
    decodes, copies, preempted = scheduler.plan()
    assert preempted and set(decodes) == {a, b, c, other} - set(preempted)
    targets = {target for _, target in copies}
    assert len(targets) == len(copies)
    for seq in preempted:
        assert not seq.blocks
    wanted = {seq.blocks[1] for seq in decodes if seq is not other}
    assert targets <= wanted, "a copy into a block that somebody else has got"
    commit(scheduler, decodes)
    end(scheduler)


def test_the_least_claim_is_preempted() -> None:
    """Lowest priority first, then the latest arrival, then the highest index."""
    scheduler = make(num_blocks=4)
    old = start(scheduler, 4, priority=1, arrival_s=1.0)[0]
    urgent = start(scheduler, 4, priority=0, arrival_s=9.0)[0]
    late = start(scheduler, 4, priority=1, arrival_s=2.0)[0]
    decodes, _, preempted = scheduler.plan()
    assert preempted == [late]
    assert set(decodes) == {old, urgent}
    assert scheduler.preemptions == 1 and late.blocks == []
    commit(scheduler, decodes)
    end(scheduler)


def test_a_sequence_can_be_its_own_victim() -> None:
    scheduler = make(num_blocks=2)
    urgent = start(scheduler, 3, priority=0)[0]
    late = start(scheduler, 4, priority=1)[0]
    decodes, _, preempted = scheduler.plan()
    assert preempted == [late] and decodes == (urgent,)
    commit(scheduler, decodes)
    end(scheduler)


def test_cached_blocks_are_evicted_before_anybody_is_preempted() -> None:
    scheduler = make(num_blocks=3)
    gone = start(scheduler, 8)[0]
    scheduler.pool.register(gone.blocks[0], b"a")
    scheduler.pool.register(gone.blocks[1], b"b")
    scheduler.remove(gone)
    seq = start(scheduler, 4)[0]
    for _ in range(5):
        step(scheduler)
    assert scheduler.preemptions == 0 and len(seq.blocks) == 3
    end(scheduler)


def test_what_ends_during_a_step_keeps_its_blocks_until_the_step_is_over() -> None:
    scheduler = make()
    a, b = start(scheduler, 3)[0], start(scheduler, 3)[0]
    decodes, _, _ = scheduler.plan()
    held = list(a.blocks)
    scheduler.remove(a)
    assert all(scheduler.pool.holds(block) for block in held)
    assert scheduler.num_tokens == len(b.tokens)
    assert commit(scheduler, decodes) == [b], "no token of a sequence that had ended"
    assert not any(scheduler.pool.holds(block) for block in held)
    end(scheduler)


def test_a_sequence_that_takes_the_place_of_another_gets_none_of_its_tokens() -> None:
    """The next attempt of the same output starts while a step of the last one is in flight."""
    scheduler = make()
    old = start(scheduler, 3)[0]
    decodes, _, _ = scheduler.plan()
    scheduler.remove(old)
    new = Sequence(Work(old.request, (0,), tuple(old.tokens[3:]), attempt=1), 0)
    new.blocks, new.num_computed, new.hashes = scheduler.pool.allocate(1), 3, [ROOT]
    scheduler.start(new, shared=False)
    assert commit(scheduler, decodes) == []
    assert new.tokens == old.tokens and new.num_computed == 3
    end(scheduler)


def test_sequences_end_with_their_last_token() -> None:
    scheduler = make()
    by_length = start(scheduler, 3, max_tokens=2)[0]
    by_token = start(scheduler, 3, eos=(5,))[0]
    goes_on = start(scheduler, 3)[0]
    decodes, _, _ = scheduler.plan()
    events = scheduler.commit(decodes, [Sampled(5)] * 3)
    assert [(seq, reason) for seq, _, reason in events] == [
        (by_length, "length"), (by_token, "stop"), (goes_on, None),
    ]  # fmt: skip
    assert list(scheduler.running.values()) == [goes_on]
    end(scheduler)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 14), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2)
        ),
        min_size=1, max_size=8,
    ),
    st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=40),
    st.sampled_from([6, 10, 30]),
)  # fmt: skip
def test_written_blocks_are_never_shared_and_nothing_leaks(shapes, endings, num_blocks) -> None:  # type: ignore[no-untyped-def]
    """Random batches, with sequences removed between and during steps."""
    scheduler = make(num_blocks, block_size=2)
    pool = scheduler.pool
    todo = list(shapes)
    removals = iter(endings)
    for _ in range(200):
        while todo and -(-todo[0][0] // 2) <= pool.num_free:
            length, n, max_tokens, priority = todo.pop(0)
            start(scheduler, length, n=n, max_tokens=max_tokens + 1, priority=priority)
        decodes, copies, preempted = scheduler.plan()
        written = [seq.blocks[seq.num_computed // 2] for seq in decodes]
        assert len(set(written)) == len(written)
        copied = {target for _, target in copies}
        sources = {source for source, _ in copies}
        for seq, block in zip(decodes, written, strict=True):
            assert pool.holds(block) == 1, "a block about to be written is shared"
            assert all(pool.holds(b) for b in seq.blocks)
            assert len(seq.blocks) * 2 > seq.num_computed
        assert copied <= set(written)
        assert not sources & set(written), "a source is overwritten in the step that copies it"
        assert all(pool.holds(source) for source in sources)
        assert not any(seq.blocks for seq in preempted)
        pool.check()
        between, which = next(removals, (False, 0))
        if between and scheduler.running:
            seq = list(scheduler.running.values())[which % len(scheduler)]
            blocks = list(seq.blocks)
            scheduler.remove(seq)
            assert all(pool.holds(block) for block in blocks)
        commit(scheduler, decodes, token=which)
        pool.check()
        if not todo and not scheduler.running:
            break
        if not decodes and not scheduler.running and todo:
            todo.pop(0)  # does not fit at all
    end(scheduler)
