"""A Llama-architecture GGUF file, written out as a Hugging Face model directory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pd.engine.gguf_tokenizer import write_tokenizer
from pd.errors import ModelError, UnsupportedModelError

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(
    source: Path,
    dest: Path,
    dtype: str,
    progress: Callable[[str], None] = lambda message: None,
) -> None:
    """Write config, weights and tokenizer of the GGUF file `source` into the directory `dest`.

    dtype: "float32" or "bfloat16". Weights are dequantised one at a time. Raises ModelError
    if the `gguf` package is missing or the file cannot be read, UnsupportedModelError if it
    holds another architecture.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(
            "reading GGUF files needs the 'gguf' package: pip install 'pd-serve[models]'"
        ) from error
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source} is not a readable GGUF file: {error}") from error
    fields = reader.fields

    def value(name: str, default: Any = None) -> Any:
        return fields[name].contents() if name in fields else default

    architecture = value("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(
            f"{source.name} holds architecture '{architecture}'; only 'llama' GGUF files convert"
        )
    names = {tensor.name: hf_name(tensor.name) for tensor in reader.tensors}
    config = _config(value, dtype, tied="output.weight" not in names)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def arrays() -> Iterator[NDArray[np.float32]]:
        for count, tensor in enumerate(reader.tensors):
            if count % 50 == 0:
                progress(f"dequantised {count} of {len(reader.tensors)} tensors")
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if ".attn_q." in tensor.name:
                array = unpermute(array, heads)
            elif ".attn_k." in tensor.name:
                array = unpermute(array, kv_heads)
            yield array

    shapes = {names[t.name]: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    write_safetensors(dest / "model.safetensors", shapes, arrays(), dtype)
    progress("writing the tokenizer")
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    pad = value("tokenizer.ggml.padding_token_id", eos)
    _write_json(dest / "config.json", config)
    _write_json(
        dest / "generation_config.json",
        {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad},
    )
    write_tokenizer(value, dest)


def hf_name(name: str) -> str:
    """The Hugging Face name of a Llama tensor named as llama.cpp names it."""
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in _PER_LAYER:
        return f"model.layers.{parts[1]}.{_PER_LAYER[parts[2]]}.{parts[3]}"
    raise UnsupportedModelError(f"unknown tensor '{name}' in a 'llama' GGUF file")


def unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's reordering of the rows of q and k.

    Its rotary kernel pairs rows (2i, 2i + 1) of a head where Hugging Face pairs (i, i + D/2),
    so its converter interleaves the two halves of every head. weight: [heads * D, E].
    """
    rows = weight.shape[0]
    pairs = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def to_bfloat16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to bfloat16, ties to even, as raw bits."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    arrays: Iterator[NDArray[np.float32]],
    dtype: str,
) -> None:
    """Write tensors one by one, in the order of `shapes`, so that only one is in memory.

    The format is a little-endian uint64 header length, a JSON header, then the raw tensors.
    """
    item_bytes, code = (4, "F32") if dtype == "float32" else (2, "BF16")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + int(np.prod(shape)) * item_bytes
        header[name] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            if array.shape != shape:
                raise ModelError(f"tensor {name} has shape {array.shape}, announced as {shape}")
            stored = array.astype("<f4") if code == "F32" else to_bfloat16_bits(array)
            file.write(stored.tobytes())


def _config(value: Callable[..., Any], dtype: str, tied: bool) -> dict[str, Any]:
    heads = int(value("llama.attention.head_count"))
    hidden = int(value("llama.embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": int(value("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(value("tokenizer.ggml.eos_token_id")),
        "head_dim": int(value("llama.rope.dimension_count", hidden // heads)),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": int(value("llama.feed_forward_length")),
        "max_position_embeddings": int(value("llama.context_length")),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(value("llama.block_count")),
        "num_key_value_heads": int(value("llama.attention.head_count_kv", heads)),
        # Stored as float32: its shortest decimal is what the authors wrote (1e-05).
        "rms_norm_eps": float(str(np.float32(value("llama.attention.layer_norm_rms_epsilon")))),
        "rope_scaling": None,
        "rope_theta": float(value("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "vocab_size": len(value("tokenizer.ggml.tokens")),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
