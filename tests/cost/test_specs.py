"""Cost models of hardware nobody here has: rooflines, and those that come with the package."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd.cost.library import find, names
from pd.cost.model import CostModel, StepLoad
from pd.cost.shape import SHAPES, ModelShape
from pd.cost.specs import GPUS, Efficiency, roofline
from pd.engine.spec import ModelSpec
from pd.errors import ConfigError

IDEAL = Efficiency(1.0, 1.0, 1.0, 1.0, gap_s=0.0, hop_s=0.0, overhead_s=0.0)
LLAMA = SHAPES["llama-3.1-8b"]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", SHAPES)
def test_no_step_beats_the_data_sheet(gpu: str, name: str) -> None:
    hardware, shape = GPUS[gpu], SHAPES[name]
    model = roofline(hardware, shape)
    for tokens in (1, 100, 8192):
        flops = 2 * shape.active_params * tokens
        reading = 2 * shape.params_read(tokens)
        least = max(flops / hardware.bf16_flops, reading / hardware.memory_bytes_s)
        assert model.step_s(StepLoad.chunk(tokens)) > least


def test_decode_of_one_sequence_reads_weights_and_its_context() -> None:
    model = roofline(GPUS["h100"], LLAMA, efficiency=IDEAL)
    kv_bytes = 2 * 32 * 2 * 8 * 128
    reading = (2 * (LLAMA.params - LLAMA.vocab * LLAMA.hidden) + 100_000 * kv_bytes) / 3.35e12
    assert model.step_s(StepLoad.decode(1, 100_000)) == pytest.approx(reading, rel=0.03)


def test_near_the_measured_kernels_of_an_h200() -> None:
    """The sum of measured kernels that the package has, and the roofline, without any gaps."""
    ideal_gaps = Efficiency(gap_s=0.0, overhead_s=0.0)
    guessed = roofline(GPUS["h200"], LLAMA, efficiency=ideal_gaps)
    measured = find("llama-3.1-8b-h200")
    for load in (StepLoad.chunk(2048), StepLoad.chunk(8192), StepLoad.decode(64, 64 * 2048)):
        kernels_s = measured.step_s(load) - measured.overhead_s
        assert guessed.step_s(load) == pytest.approx(kernels_s, rel=0.15)


@given(st.sampled_from(sorted(GPUS)), st.sampled_from([1, 2, 4, 8]), st.integers(1, 8192))
def test_more_gpus_are_never_slower_at_large_steps(gpu: str, tp: int, tokens: int) -> None:
    shape = SHAPES["llama-3.1-70b"]
    few, more = (roofline(GPUS[gpu], shape, tp=tp * k, efficiency=IDEAL) for k in (1, 2))
    load = StepLoad.chunk(tokens)
    if GPUS[gpu].node_bytes_s > 1e11:  # without NVLink they may be
        assert more.step_s(load) <= few.step_s(load)


def test_lower_precision_is_faster_and_latent_kv_is_small() -> None:
    shape = SHAPES["deepseek-r1"]
    bf16, fp8 = (roofline(GPUS["h200"], shape, tp=8, precision=p) for p in ("bf16", "fp8"))  # type: ignore[arg-type]
    assert fp8.step_s(StepLoad.decode(8, 8000)) < bf16.step_s(StepLoad.decode(8, 8000))
    assert fp8.about["kv_bytes_per_token"] == 61 * 576 * 2


def test_attention_of_its_own_reads_kv_once() -> None:
    shape = SHAPES["deepseek-r1"]
    tp, dp = (roofline(GPUS["h200"], shape, **{kind: 8}, precision="fp8") for kind in ("tp", "dp"))  # type: ignore[arg-type]
    assert dp.attention.decode(10**6) < tp.attention.decode(10**6)


@pytest.mark.parametrize(
    ("gpu", "shape", "options", "message"),
    [
        ("a100", "llama-3.1-8b", {"precision": "fp8"}, "no fp8 arithmetic"),
        ("h100", "llama-3.1-8b", {"tp": 5}, "32 heads cannot be split over 5"),
        ("h100", "llama-3.1-8b", {"dp": 2}, "dp is of models with experts"),
    ],
)
def test_what_cannot_be_is_refused(
    gpu: str, shape: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        roofline(GPUS[gpu], SHAPES[shape], **options)  # type: ignore[arg-type]


def test_the_shape_of_a_model_folder() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "num_hidden_layers": 30,
        "vocab_size": 49152, "rms_norm_eps": 1e-5, "rope_theta": 100000, "hidden_act": "silu",
        "max_position_embeddings": 8192,
    }  # fmt: skip
    shape = ModelShape.of(ModelSpec.from_config(config))
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (30, 3, 64)
    assert shape.kv_values == 30 * 2 * 3 * 64


@pytest.mark.parametrize("name", names())
def test_every_model_of_the_package_is_sound(name: str) -> None:
    model = find(name)
    for key in ("model", "hardware", "source", "kv_bytes_per_token"):
        assert model.about[key], key
    assert {"local", "shm", "tcp"} <= set(model.links)
    assert 0 < model.step_s(StepLoad.decode(1, 100)) < model.step_s(StepLoad.decode(32, 32_000))
    assert model.prefill_s(100) < model.prefill_s(2000) < model.prefill_s(2000, 2000)
    assert all(each["mean"] < 0.15 for phase, each in model.fit.items() if phase != "held out")


def test_models_are_found_by_name_or_file(tmp_path: object) -> None:
    CostModel(overhead_s=1.0).save(f"{tmp_path}/m.json")
    assert find(f"{tmp_path}/m.json").overhead_s == 1.0
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3.1-8b-h100'"):
        find("llama-3.1-8b-h10")
    with pytest.raises(ConfigError, match=r"known are llama"):
        find("zzz")
