"""One Ray for all live tests, and the cells that they share. Faults leave a cell serving, so
that one cell sees many of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_cell import LiveCell, orphaned_segments
from tiny_model import write_tiny_model

ENDING_S = 20.0
TIMEOUT_S = 400  # of a test; on a machine that compiles the kernels first, starting takes minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def live_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with steps of a few milliseconds: faults land in the middle of streams."""
    return write_tiny_model(
        tmp_path_factory.mktemp("live-model"),
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
    )  # fmt: skip


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray, and the promise that none of its processes outlives the session."""
    import ray

    from pd.placement import start_ray

    before = set(psutil.Process().children(recursive=True))
    start_ray(num_cpus=64)
    yield
    started = set(psutil.Process().children(recursive=True)) - before
    ray.shutdown()
    deadline = time.monotonic() + ENDING_S
    while (left := [p for p in started if _alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"processes left behind: {left}"
    assert not orphaned_segments()


@pytest.fixture(scope="session")
def start_cell(ray_session: None, live_model: Path) -> Callable[..., Any]:
    """Starts a cell of the tiny model within a `with`; options are those of `Config`."""
    from pd.cluster import Cluster
    from pd.config import Config

    @contextmanager
    def start(**options: Any) -> Iterator[LiveCell]:
        given: dict[str, Any] = {
            "model": str(live_model), "port": 0, "kv_cache_gib": 0.25, "threads_per_node": 1,
            "heartbeat_s": 0.1, "node_timeout_s": 4.0, "start_timeout_s": 300.0, "drain_s": 1.0,
        }  # fmt: skip
        cell = LiveCell(Cluster.start(Config.from_dict(None, **{**given, **options})))
        try:
            yield cell
        finally:
            cell.close()

    return start


@pytest.fixture(scope="session")
def session_pd_cell(start_cell: Callable[..., Any]) -> Iterator[LiveCell]:
    with start_cell(prefill=1, decode=1, transports=("shm",)) as cell:
        yield cell


@pytest.fixture
def pd_cell(session_pd_cell: LiveCell) -> Iterator[LiveCell]:
    """One prefill and one decode node that share memory; idle before and after each test."""
    session_pd_cell.wait_idle()
    yield session_pd_cell
    session_pd_cell.wait_idle()


@pytest.fixture(scope="session")
def mixed_cell(start_cell: Callable[..., Any]) -> Iterator[LiveCell]:
    """One node that serves both phases."""
    with start_cell(mixed=1) as cell:
        yield cell


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
