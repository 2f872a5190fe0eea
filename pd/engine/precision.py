"""Where a model computes and in which number formats."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvstore.layout import KVLayout
from pd.engine.spec import ModelSpec
from pd.errors import ConfigError

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Precision:
    """dtypes of weights as stored, of activations, and of the KV arena."""

    storage: torch.dtype
    compute: torch.dtype
    kv: torch.dtype


def choose_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device if there is one, else the CPU. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, not '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch finds no CUDA device here")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def choose_precision(name: str, device: torch.device, spec: ModelSpec) -> Precision:
    """What a dtype option means on a device. Raises ConfigError.

    On a CPU `name` is how weights are stored (float32 or bfloat16; "auto" is float32) and
    arithmetic is float32. On a GPU everything has that dtype; "auto" is the checkpoint's own
    if it has 16 bits, else bfloat16.
    """
    if name != "auto" and name not in _DTYPES:
        raise ConfigError(f"dtype must be auto, {', '.join(_DTYPES)}, not '{name}'")
    if device.type == "cpu":
        storage = torch.float32 if name == "auto" else _DTYPES[name]
        if storage is torch.float16:
            raise ConfigError("a CPU stores weights as float32 or bfloat16, not float16")
        return Precision(storage, torch.float32, torch.float32)
    if name == "auto":
        name = "bfloat16" if spec.dtype == "float32" else spec.dtype
    dtype = _DTYPES[name]
    return Precision(dtype, dtype, dtype)


def kv_layout(spec: ModelSpec, precision: Precision, block_size: int) -> KVLayout:
    """The layout of this model's KV arena.

    Weights rounded for storage make other KV than the checkpoint's own, so the storage dtype
    is part of the model's identity.
    """
    storage = str(precision.storage).removeprefix("torch.")
    return KVLayout(
        dtype=str(precision.kv).removeprefix("torch."),
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=block_size,
        model=f"{spec.fingerprint} {storage}",
    )
