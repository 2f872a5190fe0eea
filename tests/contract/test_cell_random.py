"""Random runs of whole cells: whatever happens, every client gets exactly its tokens and
nothing stays held. `scripts/fuzz_cell.py` runs the same at scale."""

from __future__ import annotations

import pytest
from cell.workload import TOPOLOGIES, random_run

SEEDS_PER_TOPOLOGY = 60


@pytest.mark.parametrize("topology", sorted(TOPOLOGIES))
@pytest.mark.parametrize("part", range(4))
def test_random_run(topology: str, part: int) -> None:
    share = SEEDS_PER_TOPOLOGY // 4
    for seed in range(part * share, (part + 1) * share):
        try:
            random_run(seed, topology)
        except Exception as error:
            raise AssertionError(f"seed {seed} of {topology} failed: {error}") from error


def test_a_seed_decides_everything() -> None:
    """A failure can be run again from its seed alone."""
    assert random_run(7) == random_run(7)
