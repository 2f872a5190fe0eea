"""The sampler against exact probabilities, a naive oracle, and itself on other devices."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd.engine import draws
from pd.engine.sampler import Sampler, SampleRow
from pd.types import SamplingParams

CPU = torch.device("cpu")


def sampler(vocab: int, compiled: bool = True) -> Sampler:
    """The numba path or, on the same device, the torch path."""
    made = Sampler(vocab, CPU)
    assert made._compiled is not None
    if not compiled:
        made._compiled = None
    return made


def row(seed: int = 0, position: int = 0, **params) -> SampleRow:
    prompt, output = params.pop("prompt", ()), params.pop("output", ())
    eos = params.pop("eos_ids", ())
    return SampleRow(SamplingParams(**params), seed, position, prompt, output, eos)


def tokens_of(made: Sampler, logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    return [sampled.token for sampled in made.sample(logits, rows)]


def kept_by(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """Naive oracle: which tokens survive the filters, written from their definitions."""
    scaled = (logits / np.float32(params.temperature)).astype(np.float64)
    p = np.exp(scaled - scaled.max())
    kept = set(np.flatnonzero(p >= params.min_p * p.max()))
    if params.top_k > 0:
        edge = sorted(scaled, reverse=True)[min(params.top_k, len(scaled)) - 1]
        kept &= set(np.flatnonzero(scaled >= edge))
    if params.top_p < 1:
        order = sorted(kept, key=lambda i: -p[i])
        total, before, nucleus = sum(p[i] for i in kept), 0.0, set()
        for n, i in enumerate(order):
            tied = nucleus and scaled[i] == scaled[order[n - 1]]
            if n == 0 or tied or before < params.top_p * total:
                nucleus.add(i)
            else:
                break
            before += p[i]
        kept = nucleus
    return {int(i) for i in kept}


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 5, 20, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.2, 0.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(params=PARAMS, seed=st.integers(0, 2**63 - 1), vocab=st.sampled_from([1, 2, 17, 300]))
def test_drawn_tokens_survive_the_filters_and_paths_agree(params, seed, vocab):
    generator = torch.Generator().manual_seed(seed % 1000)
    # Quarter steps, so that ties at the edges of filters are common.
    logits = (torch.randn(1, vocab, generator=generator) * 12).round() / 4
    count = 40
    rows = [SampleRow(params, seed, position, (), ()) for position in range(count)]
    many = logits.expand(count, vocab)
    drawn = tokens_of(sampler(vocab), many, rows)
    assert drawn == tokens_of(sampler(vocab, compiled=False), many, rows)
    assert set(drawn) <= kept_by(logits[0].numpy(), params)


@pytest.mark.parametrize("compiled", [True, False])
def test_every_survivor_can_be_drawn(compiled):
    logits = torch.tensor([[2.0, 1.5, 1.0, 1.0, 0.0, -1.0, -9.0]])
    for params in (
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(top_k=5, top_p=0.9, min_p=0.05, temperature=1.4),
    ):
        rows = [SampleRow(params, 9, position, (), ()) for position in range(2000)]
        drawn = set(tokens_of(sampler(7, compiled), logits.expand(2000, 7), rows))
        assert drawn == kept_by(logits[0].numpy(), params)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_frequencies_follow_the_distribution(compiled, temperature):
    vocab, count = 12, 20_000
    logits = torch.linspace(-2.0, 2.0, vocab)[torch.arange(vocab) * 5 % vocab]
    rows = [
        row(seed, position, temperature=temperature)
        for seed in range(100)
        for position in range(count // 100)
    ]
    drawn = Counter(tokens_of(sampler(vocab, compiled), logits.expand(count, vocab), rows))
    expected = torch.softmax(logits.double() / temperature, dim=0) * count
    chi_square = sum(
        (drawn[token] - float(expected[token])) ** 2 / float(expected[token])
        for token in range(vocab)
    )
    assert chi_square < 31.3  # 0.1 % quantile of 11 degrees of freedom; the seeds are fixed


def test_paths_agree_on_a_real_vocabulary_under_every_filter():
    vocab = 49152
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(1)) * 3
    cases: list[dict] = [
        {}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}, {"temperature": 0.2},
        {"temperature": 5.0}, {"top_k": 40, "top_p": 0.8, "min_p": 0.01, "temperature": 1.3},
        {"temperature": 0.0},
    ]  # fmt: skip
    rows = [row(5, 7, **case) for case in cases]
    assert tokens_of(sampler(vocab), logits, rows) == tokens_of(sampler(vocab, False), logits, rows)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_row_draws_the_same_alone_and_in_any_batch(compiled):
    vocab = 700
    logits = torch.randn(16, vocab, generator=torch.Generator().manual_seed(2)) * 3
    rows = [
        row(seed, seed * 3, temperature=[0.0, 0.8, 1.5][seed % 3], top_p=[1.0, 0.9][seed % 2],
            repetition_penalty=[1.0, 1.3][seed % 2], prompt=(1, 2, 3), output=(5, 5))
        for seed in range(16)
    ]  # fmt: skip
    made = sampler(vocab, compiled)
    together = tokens_of(made, logits, rows)
    assert together == [tokens_of(made, logits[i : i + 1], [rows[i]])[0] for i in range(16)]
    order = list(range(15, -1, -1))
    assert tokens_of(made, logits[order], [rows[i] for i in order]) == together[::-1]


def test_noise_in_the_logits_changes_almost_no_draw():
    vocab, count = 2000, 512
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(count, vocab, generator=generator) * 2
    noise = (torch.rand(count, vocab, generator=generator) - 0.5) * 2e-6
    rows = [row(11, position, top_p=0.95) for position in range(count)]
    made = sampler(vocab)
    pairs = zip(tokens_of(made, logits, rows), tokens_of(made, logits + noise, rows), strict=True)
    assert sum(a != b for a, b in pairs) <= 1


def test_seed_and_position_both_matter():
    logits = torch.zeros(1, 5000)
    made = sampler(5000)
    drawn = {
        tokens_of(made, logits, [row(seed, position)])[0]
        for seed in (0, 1, 2**63 - 1)
        for position in range(5)
    }
    assert len(drawn) > 12
    assert len({draws.draw_key(s, p) for s in range(50) for p in range(50)}) == 2500


def test_noise_is_the_same_wherever_it_is_made():
    """Pinned: a change would alter every sampled answer of a running deployment."""
    key = draws.draw_key(42, 7)
    signed = np.array([key], np.uint64).view(np.int64)
    noise = draws.gumbel(torch.from_numpy(signed), 4)[0].tolist()
    mask = 2**64 - 1
    for token in range(4):
        z = (key + (token + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        uniform = (((z ^ (z >> 31)) >> 11) + 0.5) * 2.0**-53
        assert noise[token] == pytest.approx(-math.log(-math.log1p(-uniform)), rel=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_greedy_takes_the_first_of_the_largest(compiled):
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0], [-3.0, -7.0, -2.0, -2.0]])
    rows = [row(temperature=0.0), row(temperature=0.0, top_p=0.5)]
    assert tokens_of(sampler(4, compiled), logits, rows) == [1, 2]


@pytest.mark.parametrize("compiled", [True, False])
def test_extreme_settings_are_stable(compiled):
    logits = torch.tensor([[90.0, -90.0, 3e38, -3e38, float("-inf")]])
    for params in ({"temperature": 1e-4}, {"temperature": 1e4}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert tokens_of(sampler(5, compiled), logits, [row(**params)]) == [2]


@pytest.mark.parametrize("compiled", [True, False])
def test_rows_without_a_finite_logit_are_an_error(compiled):
    for bad in (float("nan"), float("-inf"), float("inf")):
        logits = torch.zeros(2, 64)
        logits[1] = bad
        with pytest.raises(ValueError, match="row 1 of the logits has no finite value"):
            sampler(64, compiled).sample(logits, [row(), row(temperature=0.0)])


def test_edits_follow_their_definitions():
    logits = torch.tensor([[2.0, -1.0, 0.5, 1.9, 0.0]])

    def greedy(**params) -> int:
        return tokens_of(sampler(5), logits, [row(temperature=0.0, **params)])[0]

    assert greedy() == 0
    assert greedy(logit_bias={0: -100.0}) == 3
    assert greedy(logit_bias={4: 2.5, 10**9: 5.0}) == 4
    assert greedy(repetition_penalty=1.1, prompt=(0, 0, 1)) == 3
    assert greedy(repetition_penalty=1.1, output=(0,)) == 3
    assert greedy(presence_penalty=0.2, output=(0,)) == 3
    assert greedy(presence_penalty=0.2, prompt=(0,)) == 0  # presence looks at output only
    assert greedy(frequency_penalty=0.06, output=(0,)) == 0
    assert greedy(frequency_penalty=0.06, output=(0, 0)) == 3
    assert greedy(min_tokens=1, eos_ids=(0,), stop_token_ids=(3,)) == 2
    assert greedy(min_tokens=1, stop_token_ids=(0, 99)) == 3
    past = row(temperature=0.0, min_tokens=1, eos_ids=(0,), position=1)
    assert tokens_of(sampler(5), logits, [past]) == [0]


def test_penalties_match_arithmetic_and_leave_the_logits_alone():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(4))
    before = logits.clone()
    from pd.engine.edits import apply_edits

    output = (3, 3, 7, 39)
    rows = [
        row(repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2, prompt=(1, 2, 3),
            output=output, logit_bias={3: 1.0, 20: -2.0}),
        row(),
        row(frequency_penalty=-0.5, output=output),
    ]  # fmt: skip
    expected = logits.clone()
    expected[0, 3] += 1
    expected[0, 20] -= 2
    for token in (1, 2, 3, 7, 39):
        value = expected[0, token]
        expected[0, token] = value / 1.5 if value > 0 else value * 1.5
    for token, count in Counter(output).items():
        expected[0, token] -= 0.3 + 0.2 * count
        expected[2, token] += 0.5 * count
    torch.testing.assert_close(apply_edits(logits, rows), expected)
    assert torch.equal(logits, before)
    assert apply_edits(logits, [row(), row(), row()]) is logits


@pytest.mark.parametrize("compiled", [True, False])
def test_logprobs_are_of_the_unedited_model(compiled):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(5)) * 2
    exact = torch.log_softmax(logits.double(), dim=-1)
    rows = [
        row(1, logprobs=3, temperature=0.4, logit_bias={7: 50.0}),
        row(2),
        row(3, logprobs=0, top_k=1),
    ]
    sampled = sampler(50, compiled).sample(logits, rows)
    assert sampled[0].token == 7
    assert sampled[0].logprob == pytest.approx(float(exact[0, 7]), abs=1e-5)
    assert [t for t, _ in sampled[0].top] == exact[0].topk(3).indices.tolist()
    for token, value in sampled[0].top:
        assert value == pytest.approx(float(exact[0, token]), abs=1e-5)
    assert sampled[1].logprob is None and sampled[1].top == ()
    assert sampled[2].logprob == pytest.approx(float(exact[2].max()), abs=1e-5)
    assert sampled[2].top == ()
    everything = dataclasses.replace(rows[0].params, logprobs=99)
    assert len(sampler(50, compiled).sample(
        logits[:1], [dataclasses.replace(rows[0], params=everything)])[0].top) == 50  # fmt: skip


def test_misuse_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="vocabulary of 5"):
        sampler(5).sample(torch.zeros(1, 4), [row()])
    with pytest.raises(ValueError, match="2 rows"):
        sampler(5).sample(torch.zeros(1, 5), [row(), row()])
    with pytest.raises(TypeError, match="float32"):
        sampler(5).sample(torch.zeros(1, 5, dtype=torch.bfloat16), [row()])
    assert sampler(5).sample(torch.zeros(0, 5), []) == []
