"""`ModelSpec`: what a Hugging Face model directory says about its decoder.

Standard library only: gateways and planners read a spec without loading torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd.engine.rope import RopeSpec
from pd.errors import ModelError, UnsupportedModelError

SUPPORTED_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape and constants of one decoder-only model.

    `windows` holds one entry per layer: how many of the latest tokens its attention sees
    (the token itself included), or None for all. `dtype` is that of the stored weights.
    `fingerprint` is the SHA-256 (hex) of everything that determines the content of a KV block.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeSpec
    max_positions: int
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    dtype: str
    fingerprint: str = ""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        return float(self.head_dim) ** -0.5

    @classmethod
    def from_dir(cls, path: str | Path, *, load_format: str = "auto", seed: int = 0) -> ModelSpec:
        """Read config.json (and generation_config.json if there) of a model directory.

        With load_format "dummy" the fingerprint is of the seed instead of the weight files,
        which need not exist. Raises ModelError or UnsupportedModelError.
        """
        directory = Path(path).expanduser()
        config = _read_json(directory / "config.json")
        generation_file = directory / "generation_config.json"
        generation = _read_json(generation_file) if generation_file.exists() else {}
        weights = f"dummy {seed}" if load_format == "dummy" else _weights_identity(directory)
        return cls.from_config(config, generation, weights)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        weights: str = "",
    ) -> ModelSpec:
        """A spec from the parsed config.json; `weights` identifies the weight files."""
        family = _family(config)
        get = _reader(config)
        heads, hidden = get("num_attention_heads"), get("hidden_size")
        kv_heads = _kv_heads(config, family, heads)
        head_dim = config.get("head_dim") or (128 if family == "qwen3" else hidden // heads)
        if heads % kv_heads:
            raise ModelError(
                f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads"
            )
        if head_dim % 2:
            raise ModelError(f"config.json: head_dim {head_dim} must be even")
        activation = config.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise UnsupportedModelError(
                f"config.json: hidden_act '{activation}' is not supported, only 'silu'"
            )
        if config.get("quantization_config"):
            raise UnsupportedModelError(
                "config.json: quantised checkpoints are not supported; use the original weights"
            )
        attention_bias = family in ("llama", "qwen3") and bool(config.get("attention_bias"))
        layers, longest = get("num_hidden_layers"), get("max_position_embeddings")
        rope = RopeSpec.from_config(config)
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        if dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"config.json: dtype '{dtype}' is not supported; supported are {', '.join(_DTYPES)}"
            )
        eos = (generation or {}).get("eos_token_id")
        bos = config.get("bos_token_id")
        return cls(
            family=family,
            num_layers=layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=get("intermediate_size"),
            vocab_size=get("vocab_size"),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=rope,
            # A config stretched by YaRN may still name the length it was trained with.
            max_positions=max(longest, int(rope.original_max * rope.factor))
            if rope.kind == "yarn"
            else longest,
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=attention_bias,
            mlp_bias=family == "llama" and bool(config.get("mlp_bias")),
            qk_norm=family == "qwen3",
            windows=_windows(config, family, layers),
            eos_ids=_ids(eos if eos is not None else config.get("eos_token_id")),
            bos_id=bos if isinstance(bos, int) else None,
            dtype=dtype,
            fingerprint=_fingerprint(config, weights),
        )


def _family(config: Mapping[str, Any]) -> str:
    supported = ", ".join(SUPPORTED_ARCHITECTURES)
    architectures = config.get("architectures")
    if architectures:
        for architecture in architectures:
            if architecture in SUPPORTED_ARCHITECTURES:
                return SUPPORTED_ARCHITECTURES[architecture]
        named = ", ".join(str(a) for a in architectures)
        raise UnsupportedModelError(
            f"architecture {named} is not supported; supported: {supported}"
        )
    model_type = config.get("model_type")
    if model_type in SUPPORTED_ARCHITECTURES.values():
        return str(model_type)
    raise UnsupportedModelError(
        f"config.json names no supported architecture (model_type {model_type!r}); "
        f"supported: {supported}"
    )


def _reader(config: Mapping[str, Any]) -> Callable[[str], int]:
    def get(name: str) -> int:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(f"config.json: '{name}' must be a positive integer, not {value!r}")
        return value

    return get


def _kv_heads(config: Mapping[str, Any], family: str, heads: int) -> int:
    # Only Llama predates grouped-query attention; elsewhere a missing value would be a guess.
    if config.get("num_key_value_heads", None if family == "llama" else 0) is None:
        return heads
    return _reader(config)("num_key_value_heads")


def _windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer, by the rules of transformers' config classes."""
    window: int | None = None
    sliding = [False] * layers
    if family == "mistral":
        window = config.get("sliding_window", 4096)
        sliding = [window is not None] * layers
    elif family in ("qwen2", "qwen3") and config.get("use_sliding_window", False):
        window = config.get("sliding_window", 4096)
        first = config.get("max_window_layers", 28)
        sliding = [window is not None and layer >= first for layer in range(layers)]
    types = config.get("layer_types")
    if types is not None and family != "llama":
        if len(types) != layers or not set(types) <= {
            "full_attention",
            "sliding_attention",
        }:
            raise UnsupportedModelError(
                "config.json: layer_types must name 'full_attention' or 'sliding_attention' "
                f"for each of the {layers} layers"
            )
        named = [kind == "sliding_attention" for kind in types]
        if family == "mistral" and named != sliding:
            raise UnsupportedModelError(
                "config.json: a Mistral model has one kind of attention in all layers, "
                "but layer_types and sliding_window disagree"
            )
        sliding = [is_sliding and window is not None for is_sliding in named]
    if window is not None and (not isinstance(window, int) or window <= 0):
        raise ModelError(f"config.json: 'sliding_window' must be positive, not {window!r}")
    return tuple(window if is_sliding else None for is_sliding in sliding)


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(int(token) for token in value)


def _fingerprint(config: Mapping[str, Any], weights: str) -> str:
    # Which library version wrote the file does not change what the model computes.
    facts = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    canonical = json.dumps([facts, weights], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


_IRRELEVANT = frozenset({"transformers_version", "_name_or_path", "use_cache"})


def _weights_identity(directory: Path) -> str:
    """Names, sizes, headers and a sample of the bytes of the weight files.

    Cheap, yet tells two fine-tunes of one model apart, which have identical headers.
    """
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header_length, size)))
            for part in range(16):
                stream.seek(size * part // 16)
                digest.update(stream.read(4096))
    return digest.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    if not file.parent.is_dir():
        raise ModelError(f"model directory {file.parent} does not exist")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{file} does not exist; is this a Hugging Face model directory?"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return content
