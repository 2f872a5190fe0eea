"""TritonOps where they are used: under a whole engine, and when their tiles are tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton kernels need triton")

from pd.engine.engine import Engine
from pd.types import BatchPlan, PrefillChunk, Request, SamplingParams, Sequence, Work
from pd_kernels import triton_tiles, triton_tune
from pd_kernels.ops import Ops
from pd_kernels.reference import ReferenceOps
from pd_kernels.triton_ops import TritonOps

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "hidden_size": 48, "intermediate_size": 80,
    "head_dim": 20,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 200,
    "max_position_embeddings": 128, "tie_word_embeddings": False, "use_sliding_window": True,
    "sliding_window": 9, "max_window_layers": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
}  # fmt: skip


def steps(directory: Path, ops: Ops) -> tuple[list[int], torch.Tensor]:
    """Tokens and KV after a chunked prompt, a second prompt beside its decodes, and a copy."""
    engine = Engine(
        directory, device="cpu", load_format="dummy", block_size=8, num_blocks=16, ops=ops
    )
    first, second = (
        Sequence(Work(Request("r", "", tuple(prompt), SamplingParams(temperature=0.0)), (0,)), 0)
        for prompt in (range(3, 24), range(90, 103))
    )
    first.blocks, second.blocks = [9, 2, 14, 5], [7, 0, 11]
    tokens = []

    def run(plan: BatchPlan) -> None:
        drawn = [seq for chunk in plan.chunks for seq in chunk.sample] + list(plan.decodes)
        result = engine.execute(plan)
        for chunk in plan.chunks:
            chunk.seq.num_computed += chunk.num_tokens
        for seq in plan.decodes:
            seq.num_computed += 1
        for seq, sample in zip(drawn, result.samples, strict=True):
            seq.append(sample.token)
            tokens.append(sample.token)

    run(BatchPlan(chunks=(PrefillChunk(first, 0, 10),)))
    run(BatchPlan(chunks=(PrefillChunk(first, 10, 11, (first,)),)))
    for _ in range(3):
        run(BatchPlan(decodes=(first,)))
    run(BatchPlan(chunks=(PrefillChunk(second, 0, 13, (second,)),), decodes=(first,)))
    first.blocks[3], first.table_version = 6, 1
    run(BatchPlan(decodes=(second, first), copies=((5, 6),)))
    return tokens, engine.kv


@pytest.mark.skipif(not triton_tiles.INTERPRET, reason="the engine on a CPU needs the interpreter")
def test_engine_draws_what_it_draws_with_the_reference(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tokens, kv = steps(tmp_path, TritonOps())
    expected, expected_kv = steps(tmp_path, ReferenceOps())
    assert tokens == expected and len(tokens) == 8
    torch.testing.assert_close(kv, expected_kv, rtol=1e-4, atol=1e-5)


def test_tuning_keeps_the_fastest_tile_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up times: the third candidate wins, and one that cannot run is left out."""
    monkeypatch.setattr(triton_tiles, "_tuned", {})
    device = torch.device("cpu")
    calls = 0

    def measure(call: object) -> float:
        nonlocal calls
        calls += 1
        if calls % 7 == 2:
            raise RuntimeError("out of shared memory")
        return 0.5 if calls == 3 else 1.0 + calls

    before = triton_tiles.prefill_tile(device, torch.float16, 32, 3, False)
    results = triton_tune.tune_attention(
        device, torch.float16, heads=3, kv_heads=1, head_dim=32, measure=measure
    )
    assert [tuning.key.phase for tuning in results] == ["prefill", "prefill-few", "decode"]
    prefill = results[0]
    assert prefill.default == before and prefill.seconds[0][1] == 0.5
    assert prefill.refused[0][1] == "RuntimeError('out of shared memory')"
    assert triton_tiles.prefill_tile(device, torch.float16, 32, 3, False) == prefill.best
    assert triton_tiles.decode_tile(device, torch.float16, 32, 3) == results[2].best
    triton_tiles.prefill_tile.cache_clear()
    triton_tiles.decode_tile.cache_clear()


def test_tuning_says_when_nothing_runs() -> None:
    def measure(call: object) -> float:
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no tile runs for .*no device"):
        triton_tune.tune_attention(
            torch.device("cpu"), torch.float16, heads=2, kv_heads=1, head_dim=16, measure=measure
        )
