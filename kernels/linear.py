"""Linear: a layer's weights in the form its device multiplies fastest with.

On a CUDA device that is torch's own. On a CPU it is panels (pd_kernels.cpu_panels), one kernel
and one copy of the weights for every batch size, so that a row's result is the same to the last
bit in a batch of one, in a batch of many and in a chunk of a prompt.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Linear(Protocol):
    """y = x @ weight.T + bias."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in_features] -> new [T, out_features]."""
        ...

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + (x @ weight.T + bias), [T, out_features].

        The caller gives `residual` up: its storage may be reused for the result.
        """
        ...

    def weight(self) -> torch.Tensor:
        """The [out_features, in_features] weight, a copy where it is stored in another form."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight that a batch of one has to read."""
        ...


class TorchLinear:
    """torch's own matrix product. Keeps the weight it is given."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self._weight, self._bias)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return residual.add_(torch.nn.functional.linear(x, self._weight, self._bias))

    def weight(self) -> torch.Tensor:
        return self._weight

    @property
    def weight_bytes(self) -> int:
        return self._weight.nbytes


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    device: torch.device,
    storage_dtype: torch.dtype,
) -> Linear:
    """The linear layer of weight [out, in] and bias [out] on `device`.

    On the CPU activations are float32 whatever the storage dtype: bfloat16 weights are widened
    in registers. The weight is copied into panels; drop the original to keep one copy.
    Raises ValueError for shapes that disagree or a dtype that the device cannot store.
    """
    if weight.ndim != 2:
        raise ValueError(f"a linear weight has 2 dimensions, not {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit weight {tuple(weight.shape)}")
    if device.type != "cpu":
        weight = weight.to(device, storage_dtype)
        return TorchLinear(weight, None if bias is None else bias.to(device, storage_dtype))
    if storage_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"weights on a CPU are stored as float32 or bfloat16, not {storage_dtype}; "
            "choose one of these as dtype"
        )
    from pd_kernels.cpu_linear import PanelLinear

    return PanelLinear(weight, bias, storage_dtype)
