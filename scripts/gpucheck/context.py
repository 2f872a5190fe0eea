"""What the stages share: the device, the options, and the measured ceilings of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pd_kernels.ops import Ops

Numbers = dict[str, Any]

# Larger than any L2 cache, so that writing it leaves nothing of a kernel's inputs there.
_FLUSH_BYTES = 256 << 20


@dataclass
class Ceilings:
    """What this machine was measured to do, by torch's own copy and matrix product."""

    copy_bytes_per_s: float
    gemm_flops_per_s: float


@dataclass
class Context:
    """Options of the run, and what earlier stages measured."""

    device: torch.device
    ops: Ops
    quick: bool
    model: Path | None
    ceilings: Ceilings | None = None
    _flush: torch.Tensor | None = field(default=None, repr=False)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """What the backend computes in; a CPU serves in float32 alone."""
        if not self.cuda:
            return (torch.float32,)
        return (torch.float32, torch.float16, torch.bfloat16)

    @property
    def fast_dtype(self) -> torch.dtype:
        """What is served in: bfloat16 on a GPU, float32 on a CPU."""
        return torch.bfloat16 if self.cuda else torch.float32

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        """Device memory that may still be allocated; a small bound on a CPU."""
        if not self.cuda:
            return 256 << 20
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def get_ceilings(self) -> Ceilings:
        """Measured once, with random data."""
        if self.ceilings is None:
            size = (1 << 30) if self.cuda else (32 << 20)
            source = torch.empty(size // 4, device=self.device).normal_()
            target = torch.empty_like(source)
            copy_s = self.median_s(lambda: target.copy_(source), repeats=10, graph=False)
            side = 8192 if self.cuda else 512
            a, b = (
                torch.randn(side, side, device=self.device).to(self.fast_dtype) for _ in range(2)
            )
            gemm_s = self.median_s(lambda: a @ b, repeats=10, graph=False)
            self.ceilings = Ceilings(2 * size / copy_s, 2 * side**3 / gemm_s)
        return self.ceilings

    def median_s(
        self, call: Callable[[], object], *, repeats: int | None = None, graph: bool = True
    ) -> float:
        """Median seconds of a call on the device, its inputs not in the L2 cache.

        graph: replay the call as a CUDA graph, so that launch overhead of the host is left out.
        """
        repeats = repeats or (5 if not self.cuda else 12 if self.quick else 30)
        if not self.cuda:
            call()
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return statistics.median(times)
        run = self.captured(call) if graph else call
        for _ in range(2):
            run()
        if self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device=self.device)
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        for before, after in events:
            self._flush.zero_()
            before.record()
            run()
            after.record()
        torch.cuda.synchronize(self.device)
        return statistics.median(before.elapsed_time(after) for before, after in events) / 1e3

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a CUDA graph. Its tensors must outlive the graph."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries make their workspaces
                call()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def show(name: str, **facts: object) -> None:
    """One line of progress on the terminal."""
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
             for key, value in facts.items()]  # fmt: skip
    print(f"  {name:<44} {'  '.join(parts)}", flush=True)
