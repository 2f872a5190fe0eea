"""What the Triton kernels share: the mode they run in and facts of the device."""

from __future__ import annotations

import functools
import os

import torch

# The kernels are written for fused multiply-adds, whatever a Triton version's own default.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# Read once: Triton decides between compiling and interpreting when a kernel is defined. The
# interpreter runs kernels on CPU tensors with numpy; its arithmetic on bfloat16 is not right, so
# kernels compute in fp32 there.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; a small stand-in under the interpreter."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_memory_bytes(device: torch.device) -> int:
    """Most shared memory one program may take, in bytes (Hopper 227 KiB, A100 163, Ada 99)."""
    if device.type != "cuda":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 99 * 1024)


@functools.cache
def has_warpgroup_matrix_units(device: torch.device) -> bool:
    """Hopper and later take matrix operands from shared memory; before, they fill registers."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9


def wide_dots(dtype: torch.dtype) -> bool:
    """Whether dot operands of this dtype are brought to fp32 first."""
    return INTERPRET or dtype == torch.float32


def require_unit_stride(name: str, x: torch.Tensor) -> None:
    """Kernels address the last dim by element; a strided one would be read wrongly."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(
            f"{name} has stride {x.stride(-1)} in its last dim; kernels need 1: pass a contiguous "
            f"tensor or a slice that keeps the last dim whole"
        )
