"""Steps that are committed together leave everything as they would have one by one."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from decode_node.scheduler import DecodeScheduler
from kvstore.blocks import BlockPool
from pd.gateway.record import RequestRecord
from pd.messages import Tokens
from pd.outbox import Outbox, Send
from pd.types import Request, Sampled, SamplingParams, Sequence, TokenEvent, Work

SIZE = 4
DRAWN = Sampled(9)
LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(2, 40)), min_size=1, max_size=5)


def make_request(number: int, num_prompt: int, max_tokens: int, **more: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **more)  # type: ignore[arg-type]
    return Request(f"r{number}", "g", tuple(range(num_prompt)), params, arrival_s=float(number))


def make_scheduler(lengths: list[tuple[int, int]], num_blocks: int) -> DecodeScheduler:
    """Every sequence has its prompt computed and its first token drawn."""
    pool = BlockPool(num_blocks, SIZE)
    scheduler = DecodeScheduler(pool, 64)
    for number, (num_prompt, max_tokens) in enumerate(lengths):
        needs = -(-num_prompt // SIZE)
        if not pool.can_allocate(needs):
            continue
        seq = Sequence(Work(make_request(number, num_prompt, max_tokens), (0,)), 0)
        seq.append(9)
        seq.blocks, seq.num_computed = pool.allocate(needs), num_prompt
        seq.hashes = [bytes([number]) * 32] * (num_prompt // SIZE + 1)
        scheduler.start(seq, shared=False)
    return scheduler


def state(scheduler: DecodeScheduler) -> object:
    pool = scheduler.pool
    pool.check()
    running = {
        key: (seq.tokens, seq.num_computed, len(seq.blocks), seq.hashes)
        for key, seq in scheduler.running.items()
    }
    return running, scheduler.num_tokens, pool.num_free, sorted(pool.cached_keys())


@given(LENGTHS, st.integers(8, 60), st.data())
def test_together_is_as_one_by_one(
    lengths: list[tuple[int, int]], num_blocks: int, data: st.DataObject
) -> None:
    together = make_scheduler(lengths, num_blocks)
    single = copy.deepcopy(together)
    while together.running:
        decodes, _, preempted = together.plan()
        if not decodes:
            break
        ahead = together.steps_ahead(decodes)
        times = data.draw(st.integers(1, ahead))
        events = together.commit(decodes, [DRAWN] * len(decodes), times)
        assert len(events) == len(decodes)
        for step in range(times):
            alone, _, also = single.plan()
            assert [seq.key for seq in alone] == [seq.key for seq in decodes]
            assert [seq.key for seq in also] == ([seq.key for seq in preempted] if not step else [])
            last = single.commit(alone, [DRAWN] * len(alone))
            if step < times - 1:
                assert not any(reason for _, _, reason in last), "one ended in the midst of a run"
        assert [reason for _, _, reason in events] == [reason for _, _, reason in last]
        assert state(together) == state(single)


def test_what_may_stop_by_itself_does_not_run_ahead() -> None:
    scheduler = make_scheduler([(4, 30)], 40)
    (seq,) = scheduler.running.values()
    decodes, _, _ = scheduler.plan()
    assert scheduler.steps_ahead(decodes) == 29
    seq.stop_ids = frozenset({5})
    assert scheduler.steps_ahead(decodes) == 1


def test_another_batch_than_that_in_flight_does_not_run_ahead() -> None:
    scheduler = make_scheduler([(4, 30), (4, 30)], 40)
    decodes, _, _ = scheduler.plan()
    assert scheduler.steps_ahead(decodes) == 29
    scheduler.remove(decodes[0])
    assert scheduler.steps_ahead(decodes) == 1


def test_an_outbox_spells_a_run_of_tokens_out() -> None:
    outbox = Outbox("d0")
    outbox.token("g", TokenEvent("r", 0, 0, 3, 9, "length"), 4)
    (effect,) = outbox.drain()
    assert isinstance(effect, Send) and isinstance(effect.message, Tokens)
    rows = list(effect.message.rows())
    assert [row.position for row in rows] == [3, 4, 5, 6]
    assert [row.finish for row in rows] == [None, None, None, "length"]


@given(st.integers(1, 10), st.integers(1, 10))
def test_a_record_takes_a_run_as_its_tokens(before: int, count: int) -> None:
    request = make_request(0, 4, before + count)
    whole, spelled = RequestRecord(request), RequestRecord(request)
    for record in (whole, spelled):
        for position in range(before):
            record.on_token(TokenEvent("r0", 0, 0, position, 9))
    run = TokenEvent("r0", 0, 0, before, 9, "length")
    assert whole.on_run(run, count)
    for i in range(count):
        finish = "length" if i == count - 1 else None
        spelled.on_token(TokenEvent("r0", 0, 0, before + i, 9, finish))  # type: ignore[arg-type]
    assert whole.sequences[0].tokens == spelled.sequences[0].tokens
    assert whole.finished and spelled.finished
    assert not whole.on_run(run, count), "it has ended"


def test_a_run_out_of_turn_is_not_taken() -> None:
    record = RequestRecord(make_request(0, 4, 50))
    assert not record.on_run(TokenEvent("r0", 0, 0, 1, 9), 3)
    assert not record.on_run(TokenEvent("r0", 0, 1, 0, 9), 3)
    record.on_token(TokenEvent("r0", 0, 0, 2, 9))  # early
    assert not record.on_run(TokenEvent("r0", 0, 0, 0, 9), 1)
    assert record.num_output == 0
