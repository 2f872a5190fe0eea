"""Sampled output through the engine: a sequence draws the same tokens in any company."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drive import Driver
from families import VOCAB, make_model, write_model

from pd.engine.engine import Engine
from pd.types import BatchPlan, Request, SamplingParams, Sequence, Work

PROMPT = [(11 * i) % VOCAB for i in range(37)]
EVERYTHING: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "logit_bias": {5: 2.0, 9: -100.0},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = write_model("llama", tmp_path_factory.mktemp("llama"))
    yield Engine(directory, device="cpu", block_size=8, num_blocks=256)


def params(**overrides: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, "seed": 77, "ignore_eos": True, **overrides})


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_same_tokens_alone_in_a_batch_cached_and_resumed(
    engine: Engine, options: dict[str, Any]
) -> None:
    wanted = params(**options)
    # The crowd first: its driver hands out the same blocks, so it would overwrite a cache.
    crowd = Driver(engine, seed=2, max_chunk=5)
    sequences = [crowd.sequence(PROMPT, wanted)]
    for index in range(15):
        other = params(seed=index, temperature=0.0 if index % 3 == 0 else 1.3)
        sequences.append(crowd.sequence(PROMPT[index:], other))
    in_a_crowd = crowd.run(sequences)[0]

    driver = Driver(engine, seed=1)
    alone = driver.run([driver.sequence(PROMPT, wanted)])[0]
    assert len(set(alone)) > 5
    assert in_a_crowd == alone

    cached = driver.sequence(PROMPT, wanted)
    assert driver.run([cached])[0] == alone
    assert cached.blocks[:4] == list(driver.cached.values())[:4]

    request = Request("r", "", tuple(PROMPT), wanted)
    resumed = Sequence(Work(request, (0,), output=tuple(alone[:10]), attempt=1), 0)
    assert Driver(engine).run([resumed])[0] == alone


def test_outputs_of_one_request_differ(engine: Engine) -> None:
    driver = Driver(engine)
    outputs = driver.run([driver.sequence(PROMPT, params(n=3), index) for index in range(3)])
    assert len({tuple(output) for output in outputs}) == 3


def test_logprobs_are_those_of_the_raw_model(engine: Engine) -> None:
    driver = Driver(engine)
    seq = driver.sequence(PROMPT, params(**EVERYTHING, logprobs=3))
    sample = engine.execute(BatchPlan(chunks=(driver.chunk(seq, 100),))).samples[0]
    with torch.inference_mode():
        raw = make_model("llama")(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    assert sample.logprob == pytest.approx(float(raw[sample.token]), abs=1e-4)
    top = raw.topk(3)
    assert [token for token, _ in sample.top] == top.indices.tolist()
    assert [value for _, value in sample.top] == pytest.approx(top.values.tolist(), abs=1e-4)
