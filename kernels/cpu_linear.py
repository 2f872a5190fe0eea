"""PanelLinear: pd_kernels.linear.Linear on the CPU, over packed panels."""

from __future__ import annotations

import torch

from pd_kernels.cpu_panels import matmul, pack_panels, unpack_panels
from pd_kernels.cpu_threads import num_threads
from pd_kernels.cpu_vector import PANEL, tile_address


class PanelLinear:
    """y = x @ weight.T + bias with float32 x and y; weights float32 or bfloat16.

    Holds one packed copy of the weight, padded to whole panels of output columns.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, storage_dtype: torch.dtype
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = pack_panels(weight, storage_dtype)
        self.panels = self.packed.shape[0]
        self.padded = self.panels * PANEL
        # The sums of a tile start from here.
        self.init = torch.zeros(self.padded, dtype=torch.float32)
        if bias is not None:
            self.init[: self.out_features] = bias
        self.biased = bias is not None
        self.tile = tile_address(storage_dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, rows = self._checked(x)
        y = torch.empty(rows, self.padded)
        if rows:
            self._run(y, self.init.data_ptr(), 0, x, rows)
        return y if self.padded == self.out_features else y[:, : self.out_features].contiguous()

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        in_place = self.padded == self.out_features and residual.is_contiguous()
        if self.biased or not in_place or residual.dtype != torch.float32:
            return residual + self(x)
        x, rows = self._checked(x)
        if residual.shape[0] != rows:
            raise ValueError(f"residual has {residual.shape[0]} rows, x has {rows}")
        if rows:
            self._run(residual, residual.data_ptr(), self.padded, x, rows)
        return residual

    def weight(self) -> torch.Tensor:
        return unpack_panels(self.packed, self.out_features)

    @property
    def weight_bytes(self) -> int:
        return self.out_features * self.in_features * self.packed.element_size()

    def _checked(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """x as the kernel reads it, and its rows. Raises for another shape or dtype: the kernel
        is given addresses and would read past them."""
        rows, width = x.shape
        if width != self.in_features:
            raise ValueError(f"x is {rows} x {width}, but the layer takes {self.in_features}")
        if x.dtype is not torch.float32 or x.device.type != "cpu":
            raise TypeError(f"x is {x.dtype} on {x.device}; on the CPU activations are float32")
        return (x if x.stride(1) == 1 else x.contiguous()), rows

    def _run(self, y: torch.Tensor, init: int, ldi: int, x: torch.Tensor, rows: int) -> None:
        matmul(
            y.data_ptr(),
            self.padded,
            init,
            ldi,
            x.data_ptr(),
            x.stride(0),
            self.packed.data_ptr(),
            self.tile,
            self.packed.element_size(),
            rows,
            self.in_features,
            self.panels,
            num_threads(),
        )
