"""Where a model's tensors come from: safetensors files, or a seeded generator.

A model asks for one tensor (or one fused group of tensors) at a time and hands it on, so
that beside the model itself only the tensor being loaded is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pd.errors import ModelError

LoadFormat = Literal["auto", "dummy"]
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class WeightSource(Protocol):
    """Hands out freshly allocated tensors that the caller owns."""

    def fused(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The named tensors, of these shapes, concatenated along the first axis.

        `dtype` overrides that of the source. Raises ModelError naming tensor and file.
        """

    def finish(self) -> None:
        """Check that nothing was left unused."""


def open_weights(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_format: LoadFormat = "auto",
    seed: int = 0,
) -> WeightSource:
    """A source whose tensors have this dtype and are on this device.

    "auto" reads the safetensors files of the directory `path`; "dummy" draws random weights
    from `seed` and reads nothing. Raises ModelError if there are no readable files.
    """
    if load_format == "dummy":
        return DummyWeights(seed, dtype, device)
    return SafetensorsWeights(Path(path).expanduser(), dtype, device)


class SafetensorsWeights:
    """Single-file or sharded safetensors, memory-mapped."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._where = _find_tensors(directory)
        self._directory = directory
        self._unused = set(self._where)

    def fused(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        size = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        target = torch.empty(size, dtype=dtype or self._dtype, device=self._device)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            target[start : start + shape[0]].copy_(self._read(name, shape))
            start += shape[0]
        return target

    def finish(self) -> None:
        """Raises ModelError for tensors the architecture has no use for: had they been
        skipped, the model would run but compute something else."""
        unused = sorted(name for name in self._unused if not _is_derived(name))
        if unused:
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            raise ModelError(
                f"{self._directory} holds tensors that its architecture does not use: "
                f"{', '.join(unused[:5])}{more}; does config.json belong to these weights?"
            )

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        file = self._where.get(name)
        if file is None:
            files = ", ".join(sorted({file.name for file in self._where.values()}))
            raise ModelError(f"tensor '{name}' is missing from {self._directory} ({files})")
        try:
            # Opened anew each time: a mapping that stays would keep every page it has read.
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot read tensor '{name}' from {file}: {error}") from error
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"tensor '{name}' in {file} has shape {list(tensor.shape)}, "
                f"but config.json asks for {list(shape)}"
            )
        if not tensor.is_floating_point():
            raise ModelError(
                f"tensor '{name}' in {file} has dtype {tensor.dtype}; "
                "only float32, bfloat16 and float16 weights are supported"
            )
        self._unused.discard(name)
        return tensor


class DummyWeights:
    """Random weights for speed work: real shapes, meaningless text.

    Every tensor depends only on the seed and its own name. Matrices have variance 1 / inputs,
    so activations keep a sensible scale; norm weights are 1 and biases 0.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._seed = seed
        self._dtype = dtype
        self._device = device

    def fused(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        parts = [self._draw(name, shape) for name, shape in zip(names, shapes, strict=True)]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype or self._dtype)

    def finish(self) -> None:
        """Nothing to check."""

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith(".bias"):
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        if len(shape) == 1:
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device)
        # torch's CPU generator looks at the low 32 bits of a seed only.
        generator.manual_seed(crc32(f"{self._seed} {name}".encode()))
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        bound = (3.0 / shape[1]) ** 0.5  # a uniform draw has a third of its bound squared
        return tensor.uniform_(-bound, bound, generator=generator)


def _find_tensors(directory: Path) -> dict[str, Path]:
    """The file of every tensor in a model directory."""
    index = directory / INDEX_FILE
    if index.exists():
        return _read_index(index)
    single = directory / SINGLE_FILE
    if single.exists():
        try:
            with safe_open(single, framework="pt", device="cpu") as file:
                return dict.fromkeys(file.keys(), single)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{single} is not a readable safetensors file: {error}") from error
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise ModelError(
            f"{directory} holds pickled weights only; convert them to safetensors "
            "(save_pretrained of transformers does)"
        )
    raise ModelError(
        f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; "
        "load_format 'dummy' runs without weights"
    )


def _read_index(index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(weight_map, Mapping):
            raise TypeError("weight_map is not an object")
        where = {str(name): index.parent / str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read the shard index {index}: {error!r}") from error
    for file in sorted(set(where.values())):
        if file.parent != index.parent:
            raise ModelError(f"{index} points outside its directory: {file}")
        if not file.exists():
            raise ModelError(f"shard {file} is missing, though {index.name} lists it")
    return where


def _is_derived(name: str) -> bool:
    """Tensors old checkpoints carry although they follow from others."""
    return name.endswith((".rotary_emb.inv_freq", ".masked_bias")) or name == "lm_head.weight"
