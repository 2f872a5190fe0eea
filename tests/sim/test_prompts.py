"""Prompts without tokens behave as prompts with tokens do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.prefix import KeySpace, block_hashes
from pd.sim.prompts import TOKEN, CompactPrompt, PrefixKeys, SimRequest, Tokens, as_prompt
from pd.types import Request, SamplingParams, Sequence, Work

ROOT = b"r" * 32
IDS = st.lists(st.integers(0, 5), max_size=6)


def spelled(prompt: CompactPrompt) -> list[int]:
    """Its tokens, one by one."""
    return [prompt[i] for i in range(len(prompt))]


@given(IDS, st.integers(1, 40), st.integers(1, 9), st.integers(0, 30))
def test_tokens_are_a_list(ids: list[int], num_prompt: int, id_tokens: int, drawn: int) -> None:
    prompt = CompactPrompt(num_prompt, tuple(ids), id_tokens, own=-1)
    tokens, real = Tokens(prompt, 0), spelled(prompt)
    tokens.append(TOKEN)
    tokens.extend([TOKEN] * drawn)
    real += [TOKEN] * (drawn + 1)
    assert list(tokens) == real and len(tokens) == len(real)
    assert tokens[-1] == real[-1]
    for start in range(-3, len(real) + 2):
        for stop in (None, -1, start + 1, start + 7, len(real)):
            assert list(tokens[start:stop]) == real[start:stop]
    assert list(tokens[::3]) == real[::3]
    assert list(prompt[1:-1:2]) == spelled(prompt)[1:-1:2]


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)
)
def test_prompts_share_the_keys_of_what_they_share(
    a: int, b: int, shared: int, id_tokens: int, block_size: int
) -> None:
    """Two prompts whose first ids are the same have the same keys up to there, and no more."""
    common = tuple(range(shared))
    first = CompactPrompt(a, (*common, *range(100, 160)), id_tokens, own=-1)
    second = CompactPrompt(b, (*common, *range(200, 260)), id_tokens, own=-2)
    keys, others = first.keys(block_size, ROOT), second.keys(block_size, ROOT)
    assert len(keys) == a // block_size and len(set(keys)) == len(keys)
    expected = min(len(keys), len(others), shared * id_tokens // block_size)
    assert [x == y for x, y in zip(keys, others)] == [
        i < expected for i in range(min(len(keys), len(others)))
    ]
    assert all(len(key) == 32 for key in keys)


def test_a_prompt_without_ids_is_like_no_other() -> None:
    keys = [CompactPrompt(64, (), 512, own=-1 - i).keys(16, ROOT) for i in range(3)]
    assert len({key for each in keys for key in each}) == 12


def test_keys_depend_on_tenant_and_salt() -> None:
    prompt, space = CompactPrompt(64, (1,), 64, own=-1), PrefixKeys()
    tokens = Tokens(prompt, 0)
    roots = [space.root(1, "a"), space.root(1, "b"), space.root(1, "a", "salt"), space.root(2, "a")]
    assert len({key for root in roots for key in space.block_keys(tokens, 16, root)}) == 16


def test_what_was_drawn_continues_the_chain_as_a_decode_node_makes_it() -> None:
    """A resumed sequence finds the blocks that its decode node registered."""
    from decode_node.scheduler import DecodeScheduler
    from kvstore.blocks import BlockPool
    from pd.types import Sampled

    prompt = CompactPrompt(10, (7, 8), 8, own=-1)
    request = SimRequest("r", "g", as_prompt(prompt), SamplingParams(max_tokens=50))
    seq = Sequence(Work(request, (0,)), 0)
    seq.append(TOKEN)
    pool = BlockPool(20, 4)
    scheduler = DecodeScheduler(pool, 8)
    seq.blocks, seq.num_computed = pool.allocate(3), 10
    seq.hashes = [ROOT, *PrefixKeys().block_keys(Tokens(prompt, 0), 4, ROOT)]
    scheduler.start(seq, shared=False)
    for _ in range(13):
        decodes, _, _ = scheduler.plan()
        scheduler.commit(decodes, [Sampled(TOKEN)])
    assert seq.num_computed == 23
    assert seq.hashes[1:] == Tokens(prompt, 13).keys(4, ROOT)


def test_a_real_request_is_hashed_as_ever() -> None:
    request = Request("r", "g", (1, 2, 3, 4, 5), SamplingParams())
    work = Work(request, (0,), (6,))
    assert work.tokens() == [1, 2, 3, 4, 5, 6]
    assert KeySpace().block_keys(work.tokens(), 2, ROOT) == block_hashes(work.tokens(), 2, ROOT)
