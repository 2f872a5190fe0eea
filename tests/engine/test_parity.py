"""Every family through the engine against transformers: chunked, cached, mixed, shuffled."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from drive import Driver
from families import VARIANTS, VOCAB, make_model, write_model
from transformers import PreTrainedModel

from pd.engine.engine import Engine
from pd.types import BatchPlan, PrefillChunk, SamplingParams
from pd_kernels.meta import AttentionMeta
from pd_kernels.ops import Ops, select_ops
from pd_kernels.reference import ReferenceOps

PROMPT_LENGTHS = (1, 2, 15, 16, 17, 40, 90)
MAX_TOKENS = 12


def prompts_of(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in PROMPT_LENGTHS]
    # Two that share a long prefix with another, one of them ending on a block boundary.
    return [*prompts, [*prompts[-1][:61], 3, 4], prompts[-1][:64]]


def generate(model: PreTrainedModel, prompt: list[int], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


def cpu_ops() -> Ops:
    return select_ops(torch.device("cpu"))


@pytest.mark.parametrize("ops", [ReferenceOps, cpu_ops], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(name: str, ops: type[Ops], tmp_path: Path) -> None:
    model = make_model(name)
    write_model(name, tmp_path, max_shard="20KB")
    engine = Engine(tmp_path, device="cpu", block_size=8, num_blocks=256, ops=ops())
    prompts = prompts_of(seed=len(name))
    expected = [generate(model, prompt, MAX_TOKENS) for prompt in prompts]
    driver = Driver(engine, seed=1, max_chunk=24)
    assert driver.generate(prompts, MAX_TOKENS) == expected
    assert driver.cached
    # Again, from the blocks of the first round.
    assert driver.generate(prompts[::-1], MAX_TOKENS) == expected[::-1]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    write_model(name, tmp_path)
    engine = Engine(tmp_path, device="cpu", block_size=16, num_blocks=8, ops=ReferenceOps())
    prompt = prompts_of(0)[6]
    with torch.inference_mode():
        expected = make_model(name)(torch.tensor([prompt])).logits[0]
    count = len(prompt)
    table = [5, 1, 7, 0, 3, 2]
    positions = torch.arange(count)
    slots = torch.tensor(table)[positions // 16] * 16 + positions % 16
    meta = AttentionMeta.from_lists([table], [count], [count], 1)
    rows = torch.tensor([0, 7, 40, count - 1])
    logits = engine.model.forward(torch.tensor(prompt), positions, engine.kv, slots, meta, rows)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[rows], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3-sliding"])
def test_triton_kernels_compute_the_same(name: str, tmp_path: Path) -> None:
    """The decoder over the GPU's kernels: interpreted here, or compiled where there is a GPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and not torch.cuda.is_available():
        pytest.skip("needs TRITON_INTERPRET=1 or a CUDA GPU")
    triton_ops = pytest.importorskip("pd_kernels.triton_ops")
    write_model(name, tmp_path)
    engine = Engine(
        tmp_path,
        device="cpu" if interpreted else "cuda",
        dtype="float32",
        block_size=16,
        num_blocks=32,
        ops=triton_ops.TritonOps(),
    )
    prompts = [prompts_of(2)[4], prompts_of(2)[2]]
    expected = [generate(make_model(name), prompt, 3) for prompt in prompts]
    assert Driver(engine, max_chunk=16).generate(prompts, 3) == expected


def test_bfloat16_storage_is_the_model_with_rounded_weights(tmp_path: Path) -> None:
    write_model("qwen3", tmp_path)
    model = make_model("qwen3")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.bfloat16().float())
            else:
                assert name.endswith("norm.weight")  # kept in full
    engine = Engine(tmp_path, device="cpu", dtype="bfloat16", block_size=8, num_blocks=64)
    prompts = prompts_of(3)[:6]
    expected = [generate(model, prompt, MAX_TOKENS) for prompt in prompts]
    assert Driver(engine).generate(prompts, MAX_TOKENS) == expected


def test_a_sequence_resumes_where_it_was_cut_off(tmp_path: Path) -> None:
    """Recomputing prompt and output as one prompt continues to the same tokens."""
    write_model("llama", tmp_path)
    engine = Engine(tmp_path, device="cpu", block_size=8, num_blocks=64)
    prompt = prompts_of(5)[5]
    whole = Driver(engine).generate([prompt], 20)[0]
    assert Driver(engine).generate([prompt + whole[:9]], 11)[0] == whole[9:]


def test_a_step_without_samples_stores_kv_only(tmp_path: Path) -> None:
    write_model("mistral-sliding", tmp_path)
    engine = Engine(tmp_path, device="cpu", block_size=8, num_blocks=64)
    driver = Driver(engine)
    seq = driver.sequence(
        prompts_of(5)[5], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    )
    for size in (1, 9, 8, 3):
        driver.step([driver.chunk(seq, size)], [])
        assert seq.num_output == 0
    driver.step([driver.chunk(seq, 100)], [])
    expected = generate(make_model("mistral-sliding"), prompts_of(5)[5], 1)
    assert seq.tokens[seq.num_prompt :] == expected


def test_chunks_and_decodes_answer_in_plan_order(tmp_path: Path) -> None:
    """Several sequences drawing from one chunk, chunks that end and do not, then decodes."""
    write_model("llama", tmp_path)
    engine = Engine(tmp_path, device="cpu", block_size=8, num_blocks=128)
    driver = Driver(engine)
    greedy = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True, n=3)
    first, second, third, fourth = (
        driver.sequence(prompt, greedy) for prompt in prompts_of(8)[2:6]
    )
    driver.step([driver.chunk(third, 100)], [])
    twins = [driver.sequence(list(first.tokens), greedy, index) for index in range(3)]
    plan = BatchPlan(
        chunks=(
            PrefillChunk(twins[0], 0, 15, tuple(twins)),
            driver.chunk(fourth, 7),
            driver.chunk(second, 100),
        ),
        decodes=(third,),
    )
    driver.grow(twins[0], 15)
    driver.grow(third, len(third.tokens))
    samples = [sample.token for sample in engine.execute(plan).samples]
    model = make_model("llama")
    expected = [generate(model, list(first.tokens), 1)[0]] * 3
    expected += generate(model, list(second.tokens), 1)
    expected += generate(model, list(third.tokens), 1)
    assert samples == expected
