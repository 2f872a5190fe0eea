"""Cells that live tests share. Faults leave a cell serving, so that one cell sees many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_cell import LiveCell

TIMEOUT_S = 400  # of a test; on a machine that compiles the kernels first, starting takes minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


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
