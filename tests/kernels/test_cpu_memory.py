"""The CPU kernels read no memory that was freed or never written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHECK = """
import torch
from pd_kernels.cpu_ops import CpuOps
from pd_kernels.meta import AttentionMeta
from pd_kernels.reference import ReferenceOps

torch.manual_seed(0)
kv = torch.randn(12, 1, 2, 3, 16, 64)
tables = [[3, 1, 4, 0, 5, 9], [2, 6], [7, 8, 10, 11]]
meta = AttentionMeta.from_lists(
    tables, [70, 1, 1], [90, 20, 64], num_prefill=1, device=torch.device("cpu")
)
q = torch.randn(72, 9, 64)
for window in (None, 17):
    got = CpuOps().attention(q, kv, 0, meta, 0.125, window)
    torch.testing.assert_close(got, ReferenceOps().attention(q, kv, 0, meta, 0.125, window))
"""


@pytest.mark.parametrize("filler", ["165", "255"])
def test_attention_with_all_freed_memory_overwritten(filler: str) -> None:
    """glibc fills what is freed, and what is allocated with the complement; 255 makes NaNs."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "MALLOC_PERTURB_": filler}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
