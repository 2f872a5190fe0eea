"""What every test has: few threads, models to load, and a guard that nothing is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from live_fixtures import live_model, ray_session, start_cell  # noqa: F401
from processes import describe, running

# Set before any test module is imported: torch, numba, triton and tokenizers read these once.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Without a GPU, Triton kernels are interpreted. Triton decides that when it is first imported, and
# transformers imports it.
if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Machines differ and are shared: an example may be slow, a test only hangs at its time limit.
settings.register_profile("pd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pd")

REAL_MODEL = "smollm2-135m"
ENDING_S = 10.0
LIVE_TIMEOUT_S = 600


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        # One of several pytest processes begins with what takes longest.
        items.sort(key=lambda item: not _starts_ray(item.path))
    for item in items:
        # A dozen processes load a model and compile kernels first, on a machine that may be busy.
        if item.get_closest_marker("live") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIVE_TIMEOUT_S))
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none here")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Between several pytest processes: all files that need Ray to one of them, which mostly
    waits; the other files as they come, each as a whole."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "live" if _starts_ray(config.rootpath / file) else file

    return ByFile(config, log)


@cache
def _starts_ray(file: Path) -> bool:
    return file.parent.name == "live" or "pytest.mark.live" in file.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The real model, SmolLM2-135M-Instruct. PD_TEST_MODEL names a directory that has it."""
    from pd.engine.gguf_model import get_model
    from pd.errors import ModelError

    given = os.environ.get("PD_TEST_MODEL")
    if given:
        assert (Path(given) / "config.json").is_file(), f"PD_TEST_MODEL={given} is not a model"
        return Path(given)
    try:
        return get_model(REAL_MODEL)
    except ModelError as error:
        pytest.skip(f"the real model is not to be had: {error}")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a working tokenizer and chat template."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves child processes or shared memory of this process behind.

    What a fixture of wider scope started belongs to that fixture: it was there before.
    """
    children, segments = _children(), _segments()
    yield
    deadline = time.monotonic() + ENDING_S
    while (left := _children() - children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"processes left behind: {[describe(pid) for pid in left]}"
    assert not _segments() - segments, f"shared memory left behind: {_segments() - segments}"


def _children() -> set[int]:
    """Processes that this one started and that still run."""
    return {child.pid for child in psutil.Process().children() if running(child)}


def _segments() -> set[str]:
    """KV memory in /dev/shm that this process keeps open."""
    links = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.add(os.readlink(descriptor))
        except OSError:  # the one that lists the folder is closed by now
            continue
    return {link for link in links if link.startswith("/dev/shm/pd-")}
