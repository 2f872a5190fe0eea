"""The transports that tests of all of them run with."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NIXL = pytest.param(
    "nixl", marks=pytest.mark.skipif(find_spec("nixl") is None, reason="nixl is not installed")
)
BETWEEN_PROCESSES = ["shm", "zmq", "torch", NIXL]
TRANSPORTS = ["inproc", *BETWEEN_PROCESSES]
