"""What is read from config.json, against transformers' own reading, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import VARIANTS, make_model, write_model

from pd.engine.rope import RopeSpec
from pd.engine.spec import ModelSpec
from pd.errors import ModelError, UnsupportedModelError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 100,
}


def qwen2(**overrides: Any) -> dict[str, Any]:
    base = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 4}
    return {**LLAMA, **base, **overrides}


def mistral(**overrides: Any) -> dict[str, Any]:
    base = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    return {**LLAMA, **base, **overrides}


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    config = make_model(name).config
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    spec = ModelSpec.from_config({**written, "architectures": [type(make_model(name)).__name__]})
    assert spec.family == VARIANTS[name][0]
    assert spec.num_layers == config.num_hidden_layers
    assert spec.num_heads == config.num_attention_heads
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.vocab_size == config.vocab_size
    assert spec.rms_norm_eps == config.rms_norm_eps
    assert spec.tie_embeddings == config.tie_word_embeddings
    layer = make_model(name).model.layers[0].self_attn
    assert spec.head_dim == layer.head_dim
    assert spec.qkv_bias == (layer.q_proj.bias is not None)
    assert spec.o_bias == (layer.o_proj.bias is not None)
    assert spec.qk_norm == hasattr(layer, "q_norm")
    assert spec.scale == pytest.approx(layer.scaling)


def test_old_and_new_spelling_of_rope_agree() -> None:
    section = {"factor": 4.0, "original_max_position_embeddings": 32}
    old = {**LLAMA, "rope_theta": 5000.0, "rope_scaling": {"type": "yarn", **section}}
    new = {**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, **section}}
    assert RopeSpec.from_config(old) == RopeSpec.from_config(new)
    assert RopeSpec.from_config(old).theta == 5000.0
    assert RopeSpec.from_config({**LLAMA, "rope_scaling": None}) == RopeSpec()


def test_yarn_extends_the_positions() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert ModelSpec.from_config({**LLAMA, "rope_parameters": rope}).max_positions == 512
    assert ModelSpec.from_config(LLAMA).max_positions == 128


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "mrope", "su", "proportional"])
def test_unsupported_rope_is_refused_with_the_supported_ones(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{kind}'.*default, linear, llama3, yarn"):
        RopeSpec.from_config({**LLAMA, "rope_scaling": {"rope_type": kind, "factor": 2.0}})


@pytest.mark.parametrize(
    "section",
    [
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": -1},
        {"rope_type": "linear", "factor": "4"},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        ["linear"],
    ],
)
def test_impossible_rope_is_refused(section: Any) -> None:
    with pytest.raises(ModelError):
        RopeSpec.from_config({**LLAMA, "rope_scaling": section})


def test_rope_per_layer_type_and_partial_rotary_are_refused() -> None:
    nested = {"full_attention": {"rope_type": "default"}}
    with pytest.raises(UnsupportedModelError, match="layer types"):
        RopeSpec.from_config({**LLAMA, "rope_parameters": nested})
    with pytest.raises(UnsupportedModelError, match=r"partial_rotary_factor 0\.5"):
        RopeSpec.from_config({**LLAMA, "partial_rotary_factor": 0.5})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported.*Qwen3"),
        ({"architectures": None, "model_type": "gemma"}, "'gemma'"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"torch_dtype": "float64"}, "'float64'"),
    ],
)
def test_unsupported_models_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        ModelSpec.from_config({**LLAMA, **overrides})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": None}, "'hidden_size'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers'"),
        ({"vocab_size": "100"}, "'vocab_size'"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"head_dim": 15}, "head_dim 15"),
    ],
)
def test_broken_configs_are_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.from_config({**LLAMA, **overrides})


def test_model_type_serves_where_architectures_are_missing() -> None:
    spec = ModelSpec.from_config({**LLAMA, "architectures": None})
    assert spec.family == "llama"


def test_llama_without_kv_heads_is_multi_head() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert ModelSpec.from_config(config).num_kv_heads == 4


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (LLAMA, (None, None)),
        ({**LLAMA, "sliding_window": 7}, (None, None)),
        (mistral(), (4096, 4096)),
        (mistral(sliding_window=None), (None, None)),
        (mistral(sliding_window=9), (9, 9)),
        (qwen2(sliding_window=9), (None,) * 4),
        (
            qwen2(use_sliding_window=True, sliding_window=9, max_window_layers=2),
            (None, None, 9, 9),
        ),
        (
            qwen2(
                use_sliding_window=True,
                sliding_window=9,
                layer_types=["sliding_attention", "full_attention"] * 2,
            ),
            (9, None, 9, None),
        ),
    ],
)
def test_windows_follow_each_familys_rule(
    config: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert ModelSpec.from_config(config).windows == windows


def test_contradictory_windows_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="disagree"):
        ModelSpec.from_config(
            mistral(sliding_window=9, layer_types=["full_attention", "sliding_attention"])
        )
    with pytest.raises(UnsupportedModelError, match="layer_types"):
        ModelSpec.from_config(qwen2(layer_types=["full_attention"]))


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, {}, (2,)),
        ([2, 3], {}, (2, 3)),
        (2, {"eos_token_id": [5, 6]}, (5, 6)),
        (0, {"eos_token_id": None}, (0,)),
        (None, {}, ()),
    ],
)
def test_generation_config_decides_the_end_of_text(
    config_eos: Any, generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    spec = ModelSpec.from_config({**LLAMA, "eos_token_id": config_eos}, generation)
    assert spec.eos_ids == expected


def test_fingerprint_follows_config_and_weights(tmp_path: Path) -> None:
    first = ModelSpec.from_dir(write_model("llama", tmp_path / "a", seed=0))
    same = ModelSpec.from_dir(write_model("llama", tmp_path / "b", seed=0))
    tuned = ModelSpec.from_dir(write_model("llama", tmp_path / "c", seed=1))
    other = ModelSpec.from_dir(write_model("llama-linear", tmp_path / "d", seed=0))
    dummy = ModelSpec.from_dir(tmp_path / "a", load_format="dummy")
    assert first.fingerprint == same.fingerprint
    prints = {spec.fingerprint for spec in (first, tuned, other, dummy)}
    assert len(prints) == 4
    assert dummy.fingerprint != ModelSpec.from_dir(
        tmp_path / "a", load_format="dummy", seed=1
    ).fingerprint  # fmt: skip


def test_unreadable_directories_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        ModelSpec.from_dir(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="Hugging Face model directory"):
        ModelSpec.from_dir(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match="cannot read"):
        ModelSpec.from_dir(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        ModelSpec.from_dir(tmp_path)


def test_spec_tokenizer_and_chat_load_no_torch() -> None:
    code = (
        "import sys, pd.engine.spec, pd.engine.detokenizer, pd.engine.chat;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
