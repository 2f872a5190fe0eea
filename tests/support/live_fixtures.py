"""One Ray for all tests that start real processes, and a way to start cells there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import running

ENDING_S = 20.0


@pytest.fixture(scope="session")
def live_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with steps of a few milliseconds: faults land in the middle of streams."""
    from tiny_model import write_tiny_model

    return write_tiny_model(
        tmp_path_factory.mktemp("live-model"),
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
    )  # fmt: skip


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray, and the promise that none of its processes outlives the session."""
    import ray
    from live_cell import orphaned_segments

    from pd.placement import start_ray

    before = set(psutil.Process().children(recursive=True))
    start_ray(num_cpus=64)
    yield
    started = set(psutil.Process().children(recursive=True)) - before
    ray.shutdown()
    deadline = time.monotonic() + ENDING_S
    while (left := [p for p in started if running(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"processes left behind: {left}"
    # Other tests make some on purpose, and end them.
    while (orphans := orphaned_segments()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not orphans


@pytest.fixture(scope="session")
def start_cell(ray_session: None, live_model: Path) -> Callable[..., Any]:
    """Starts a cell of the tiny model within a `with`; options are those of `Config`."""
    from live_cell import LiveCell

    from pd.cluster import Cluster
    from pd.config import Config

    @contextmanager
    def start(**options: Any) -> Iterator[Any]:
        given: dict[str, Any] = {
            "model": str(live_model), "port": 0, "kv_cache_gib": 0.1, "pool_dram_gib": 0.05,
            "threads_per_node": 1,
            "heartbeat_s": 0.1, "node_timeout_s": 4.0, "start_timeout_s": 300.0, "drain_s": 1.0,
        }  # fmt: skip
        cell = LiveCell(Cluster.start(Config.from_dict(None, **{**given, **options})))
        try:
            yield cell
        finally:
            cell.close()

    return start
