"""Faults of every kind in simulated cells, coordinator and gateway included: every request ends
with exactly its tokens and nothing stays held. `scripts/fuzz_cell.py --faults` runs the same at
scale."""

from __future__ import annotations

import pytest
from cell.chaos import chaos_run

SEEDS, PARTS = 300, 4


@pytest.mark.parametrize("part", range(PARTS))
def test_faults(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        try:
            chaos_run(seed)
        except Exception as error:
            raise AssertionError(
                f"seed {seed} failed: {error}\n"
                f"replay: python scripts/fuzz_cell.py --faults 12 --start {seed} --seeds 1"
            ) from error


def test_a_seed_decides_everything() -> None:
    assert chaos_run(11) == chaos_run(11)
