"""One gateway over a fake cell for the tests of a module; each finds the cell reset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from front import Front, eventually, serving
from text_model import write_text_model


@pytest.fixture(scope="session")
def text_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text-model"))


@pytest.fixture(scope="module")
def module_front(text_model_dir: Path) -> Iterator[Front]:
    with serving(text_model_dir) as front:
        yield front


@pytest.fixture
def front(module_front: Front) -> Iterator[Front]:
    module_front.cell.reset()
    yield module_front
    eventually(lambda: not module_front.server.link.running)
