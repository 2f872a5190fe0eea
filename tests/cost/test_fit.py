"""Fits: they find what is there, stand outliers, and say what they lack."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.cost.curve import Curve
from pd.cost.fit import errors, fit, knots, split
from pd.cost.load import Sample
from pd.cost.model import Attention, CostModel, StepLoad
from pd.cost.nnls import nnls
from pd.cost.shape import SHAPES, shape_of
from pd.cost.tables import Operators, distserve_samples, layer_samples
from pd.errors import ConfigError

TRUTH = CostModel(
    linear=Curve([(1, 0.01), (64, 0.01), (256, 0.02), (2048, 0.15)]),
    output=Curve([(1, 0.0), (256, 0.002)]),
    attention=Attention(
        2e-9,
        1e-7,
        0.0,
        Curve([(64, 1e-4), (500_000, 0.05)]),
        1e-5,
        Curve([(64, 0.0), (10**6, 0.02)]),
    ),
)


def loads() -> list[StepLoad]:
    chunks = [
        StepLoad.chunk(n, start)
        for n, start in product((1, 16, 64, 128, 256, 512, 1024, 2048), (0, 512, 4096))
    ]
    decodes = [
        StepLoad.decode(n, n * each)
        for n, each in product((1, 2, 8, 32, 64, 128, 256), (64, 500, 2000))
    ]
    return [*chunks, *decodes, *(a + b for a, b in product(chunks[::3], decodes[::2]))]


def samples(noise: float = 0.0, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    return [Sample(x, TRUTH.step_s(x) * (1 + rng.uniform(-noise, noise))) for x in loads()]


def test_exact_steps_are_fitted_closely() -> None:
    found = fit(samples(), about={"model": "m"})
    assert found.about == {"model": "m"}
    for phase in ("prefill", "decode", "mixed"):
        assert found.fit[phase]["mean"] < 0.015, found.fit


def test_outliers_move_the_fit_little() -> None:
    spoiled = samples(0.02)
    spoiled[5::12] = [Sample(s.load, 4 * s.seconds) for s in spoiled[5::12]]
    assert errors(fit(spoiled), samples())["all"]["mean"] < 0.04


def test_held_out_steps_are_predicted() -> None:
    fitted, held = split(samples(0.02))
    assert len(held) > 20 and not set(held) & set(fitted)
    assert {s.load.phase for s in held} == {"prefill", "decode", "mixed"}
    assert errors(fit(fitted), held)["all"]["mean"] < 0.06


def test_without_mixed_steps_the_halves_are_added() -> None:
    found = fit([s for s in samples() if s.load.phase != "mixed"])
    assert found.attention.mixed == Curve() and found.attention.pad_s == 0.0
    assert "mixed" not in found.fit


def test_whole_prompts_do_not_tell_what_reading_kv_takes() -> None:
    """They read as many tokens as they compute: the part of the one in the other is given."""
    whole = [s for s in samples() if s.load.prefill_context == s.load.prefill_tokens]
    assert any(s.load.num_chunks for s in whole) and fit(whole).attention.context_s == 0.0
    given = fit(whole, context_s=1e-7)
    assert given.attention.context_s == 1e-7 and given.fit["prefill"]["mean"] < 0.015
    assert fit(samples(), context_s=1.0).attention.context_s == pytest.approx(1e-7, rel=0.2)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_too_few_steps_are_refused(phase: str) -> None:
    rest = [s for s in samples() if s.load.phase != phase]
    few = [s for s in samples() if s.load.phase == phase][:7]
    with pytest.raises(ConfigError, match=rf"at least 8 {phase} steps .* there are 7"):
        fit([*rest, *few])
    with pytest.raises(ConfigError, match=r"there are 20 of 1: measure more"):
        fit([*rest, *few[:1] * 20])


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_that_took_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="must have work and take time"):
        fit([*samples(), Sample(StepLoad.chunk(1), seconds)])


@given(st.sets(st.integers(1, 10**6), min_size=1), st.integers(2, 30))
def test_knots_are_values_that_were_measured(values: set[int], most: int) -> None:
    found = knots(values, most)
    assert len(found) <= max(most, 1) and found == sorted(set(found))
    assert set(found) <= values and {min(values), max(values)} <= set(found)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(6, 12))
def test_nnls_is_a_least_square_without_negatives(seed: int, terms: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(rows, terms)), rng.normal(size=rows)
    x = nnls(matrix, target)
    assert (x >= 0).all()
    # Karush, Kuhn, Tucker: no coefficient that is 0 would lower the square by growing, and those
    # above it are at their best.
    gradient = matrix.T @ (target - matrix @ x)
    assert (gradient <= 1e-6).all()
    assert np.abs(gradient[x > 0]).max(initial=0.0) <= 1e-6


# ---------------------------------------------------------------- tables of others
def test_layer_tables_are_summed(tmp_path: Path) -> None:
    names = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn",
             "down_proj", "embedding", "final_layernorm")  # fmt: skip
    dense = tmp_path / "dense.csv"
    dense.write_text("layer,tokens,time_us\n" + "".join(f"{n},1,1\n{n},11,11\n" for n in names))
    per = tmp_path / "per.csv"
    per.write_text("layer,sequences,time_us\nlm_head,1,100\nsampler,1,10\n")
    attention = tmp_path / "attention.csv"
    attention.write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n5,20,0,0,7\n4,0,2,30,9\n"
    )
    chunk, mixed = layer_samples(attention, dense, per, num_layers=3)
    assert chunk.load == StepLoad.chunk(5, 20)
    assert chunk.seconds == pytest.approx((3 * (8 * 5 + 7) + 2 * 5 + 110) * 1e-6)
    assert mixed.load == StepLoad.chunk(4) + StepLoad.decode(2, 60)
    assert mixed.seconds == pytest.approx((3 * (8 * 6 + 9) + 2 * 6 + 3 * 110) * 1e-6)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"table.csv has no column layer, time_us, tokens"):
        layer_samples(path, path, path, 1)
    with pytest.raises(ConfigError, match="cannot read the table"):
        layer_samples(tmp_path / "none.csv", tmp_path / "none.csv", path, 1)


def test_distserve_fits_become_a_model(tmp_path: Path) -> None:
    path = tmp_path / "fits.json"
    path.write_text(
        '{"e": {"m": {"2": {"decoding_large_small_bs_threshold": 95, "prefill": [10, 0.1, 1e-5],'
        '"decoding_smallbs": [9, 0.001, 0.04], "decoding_largebs": [5, 0.001, 0.1]}}}}'
    )
    found = fit(distserve_samples(path, "e", "m", 2))
    assert found.fit["all"]["mean"] < 0.03
    assert found.step_s(StepLoad.chunk(700)) == pytest.approx(0.0849, rel=0.05)
    with pytest.raises(ConfigError, match="no fit of e, m, tp 4"):
        distserve_samples(path, "e", "m", 4)


def test_operator_tables_are_summed(tmp_path: Path) -> None:
    def table(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    shape = shape_of("llama-3.1-8b")
    gemm = "gpu,m,n,k,latency_ms\n" + "".join(f"G,{m},4096,4096,{m}\n" for m in (1, 100, 10000))
    sizes = (16, 64, 128, 256, 512)
    ops = Operators(
        "G",
        table("gemm", gemm),
        table("prefill", "gpu,q_heads,kv_heads,batch,isl,latency_ms\n"
              + "".join(f"G,16,4,1,{n},2\n" for n in sizes)),
        table("decode", "gpu,q_heads,kv_heads,batch,kv_len,latency_ms\n"
              + "".join(f"G,16,4,{n},64,3\n" for n in sizes)),
        table("nccl", "gpu,op,num_gpus,message_elems,latency_ms\nG,all_reduce,2,1,0.5\n"),
        memory_bytes_s=1e30,
    )  # fmt: skip
    found = ops.samples(shape, tp=2)
    assert len(found) == 10
    # 16 tokens through a matrix of 4096 x 4096 take 16 ms, others in proportion to their size.
    weights = sum(out * width for out, width in shape.gemms) / 2 / 4096**2
    reduce_s = 16 * 4096 * 0.5e-3
    layer = 16e-3 * weights + 2e-3 + 2 * reduce_s
    output = 1e-3 * (128256 / 2 * 4096) / 4096**2
    assert found[0].seconds == pytest.approx(32 * layer + output)
    with pytest.raises(ConfigError, match="8 and 2 heads was not measured"):
        ops.samples(shape, tp=4)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3.1-8b", 8.0), ("llama-3.1-70b", 70.6), ("qwen3-32b", 32.8), ("deepseek-r1", 671),
     ("kimi-k2.5", 1026),
     ("gpt-oss-120b", 117)],
)  # fmt: skip
def test_known_shapes_have_their_models_size(name: str, billions: float) -> None:
    assert SHAPES[name].params / 1e9 == pytest.approx(billions, rel=0.02)


def test_an_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="known are llama-3.1-8b"):
        shape_of("llama-9")
