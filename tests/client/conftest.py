"""A gateway over a fake cell, and the fixtures to talk to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from front import Front, eventually, serving
from text_model import write_text_model


@pytest.fixture(scope="module")
def module_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory: Path = write_text_model(tmp_path_factory.mktemp("text-model"))
    with serving(directory) as front:
        yield front


@pytest.fixture
def front(module_front: Front) -> Iterator[Front]:
    module_front.cell.reset()
    yield module_front
    eventually(lambda: not module_front.server.link.running)
