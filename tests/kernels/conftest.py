"""Devices that the Triton kernels are tested on: the interpreter here, a GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a kernel test keeps its tensors. One process either compiles or interprets."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.param == "interpreter" and not interpreted:
        pytest.skip("kernels are compiled in this process; set TRITON_INTERPRET=1 to interpret")
    if request.param == "cuda" and interpreted:
        pytest.skip("kernels are interpreted in this process; unset TRITON_INTERPRET to compile")
    return torch.device("cpu" if request.param == "interpreter" else "cuda")
