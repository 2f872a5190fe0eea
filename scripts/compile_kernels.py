#!/usr/bin/env python3
"""Compiles every Triton kernel for a GPU that need not be here: python scripts/compile_kernels.py

Prints, for each, registers a thread, bytes spilled, shared memory and how many matrix, asynchronous
copy and 16-byte instructions the machine code has. Catches what the interpreter lets through, and
spills and narrow loads, before a GPU is spent on them. Exit status 1 if a kernel spills.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # compiling is the point

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pd_kernels import triton_attention_decode, triton_attention_prefill, triton_tiles
from pd_kernels.meta import AttentionMeta
from pd_kernels.triton_ops import TritonOps

# Multiprocessors and shared memory a program of a device of each capability (A100, L40, H200).
DEVICES = {80: (108, 163), 89: (142, 99), 90: (132, 227)}
INSTRUCTIONS = ("HGMMA", "HMMA", "FFMA", "LDGSTS", "LDG.E.128", "STG.E.128")
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentDevice:
    """What Triton asks of a driver in order to compile, answered for a device not present."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


class Compiler:
    """Stands in for launching: compiles, and reads the machine code."""

    def __init__(self, arch: int) -> None:
        multiprocessors, shared = DEVICES[arch]
        triton.runtime.driver.set_active(AbsentDevice(arch))
        for module in (triton_attention_prefill, triton_attention_decode):
            module.num_multiprocessors = lambda device: multiprocessors
        triton_tiles.shared_memory_bytes = lambda device: shared * 1024
        triton_tiles.has_warpgroup_matrix_units = lambda device: arch >= 90
        self.label = ""
        self.rows: list[dict[str, Any]] = []
        self._run = JITFunction.run

    def __enter__(self) -> Compiler:
        def compile_only(kernel: Any, *args: Any, **options: Any) -> Any:
            options["warmup"] = True
            compiled = self._run(kernel, *args, **options)
            self._report(kernel.__name__.strip("_"), compiled)
            return compiled

        JITFunction.run = compile_only
        return self

    def __exit__(self, *error: object) -> None:
        JITFunction.run = self._run

    def _report(self, name: str, compiled: Any) -> None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = _output(str(TOOL), "-res-usage", file.name)
            code = _output(str(TOOL), "-sass", file.name)
        registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
        counts = {word: code.count(word) for word in INSTRUCTIONS}
        row = {
            "kernel": name,
            "case": self.label,
            "registers": int(registers),
            "spilled": int(stack),
            "shared": compiled.metadata.shared,
            "warps": compiled.metadata.num_warps,
            **counts,
        }
        self.rows.append(row)
        shown = " ".join(f"{word}:{n}" for word, n in counts.items() if n)
        print(
            f"{name:<20}{self.label:<34}regs {registers:>3}  spilled {stack:>4}  "
            f"shared {row['shared']:>6}  warps {row['warps']}  {shown}",
            flush=True,
        )


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def attention(
    compiler: Compiler, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype,
    window: int | None = None,
) -> None:  # fmt: skip
    """Prefill with many and with few rows, and decode with splits."""
    ops = TritonOps()
    name = str(dtype).removeprefix("torch.")
    compiler.label = f"{heads}/{kv_heads} heads of {head_dim} {name} W={window}"
    kv = torch.zeros(4, 2, 2, kv_heads, 16, head_dim, dtype=dtype)
    for num_tokens in (4096, 64):
        q = torch.zeros(num_tokens, heads, head_dim, dtype=dtype)
        meta = AttentionMeta.from_lists([[0]], [num_tokens], [num_tokens], 1)
        ops.attention(q, kv, 1, meta, 0.1, window)
    q = torch.zeros(4, heads, head_dim, dtype=dtype)
    meta = AttentionMeta.from_lists([[0]] * 4, [1] * 4, [8192] * 4, 0)
    ops.attention(q, kv, 1, meta, 0.1, window)


def others(compiler: Compiler, dtype: torch.dtype) -> None:
    """Norms, activation, rotary and KV movement in the shapes of Llama-3-8B."""
    ops = TritonOps()
    compiler.label = f"Llama-3-8B {str(dtype).removeprefix('torch.')}"
    x, weight = torch.zeros(64, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype)
    ops.rms_norm(x, weight, 1e-5)
    ops.add_rms_norm(x, x.clone(), weight, 1e-5)
    ops.silu_mul(torch.zeros(64, 28672, dtype=dtype))
    fused = torch.zeros(64, 48, 128, dtype=dtype)
    q, k, v = fused[:, :32], fused[:, 32:40], fused[:, 40:]
    indices = torch.zeros(64, dtype=torch.int64)
    ops.rotary(q, k, indices, torch.zeros(4096, 128))
    kv = torch.zeros(4, 2, 2, 8, 16, 128, dtype=dtype)
    ops.write_kv(k, v, kv, 1, indices)
    packed = ops.pack_blocks(kv, indices[:2])
    ops.unpack_blocks(kv, indices[:2], packed)
    ops.copy_blocks(kv, indices[:2], indices[2:4])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, choices=sorted(DEVICES), default=90)
    parser.add_argument("--quick", action="store_true", help="Llama-3-8B in bfloat16 only")
    options = parser.parse_args()
    if not TOOL.exists():
        print(f"this Triton has no {TOOL.name} ({TOOL}); install triton for CUDA")
        return 2
    with Compiler(options.arch) as compiler:
        attention(compiler, 32, 8, 128, torch.bfloat16)
        others(compiler, torch.bfloat16)
        if not options.quick:
            attention(compiler, 32, 8, 128, torch.bfloat16, window=4096)
            attention(compiler, 9, 3, 64, torch.bfloat16)
            attention(compiler, 28, 4, 128, torch.float16)
            attention(compiler, 12, 12, 80, torch.bfloat16)
            attention(compiler, 8, 4, 256, torch.bfloat16)
            attention(compiler, 32, 8, 128, torch.float32)
            others(compiler, torch.float32)
    spilling = [row for row in compiler.rows if row["spilled"]]
    for row in spilling:
        print(f"spills {row['spilled']} bytes: {row['kernel']}, {row['case']}")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
