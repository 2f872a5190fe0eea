"""Small simulated cells and workloads: round figures, so that times can be checked by hand."""

from __future__ import annotations

from random import Random
from typing import Any

from pd.config import Config
from pd.cost.curve import Curve
from pd.cost.model import Attention, CostModel, Link
from pd.sim.cell import SimCell
from pd.sim.node import SimNode
from pd.sim.pool import SimPool
from pd.sim.spec import CellSpec, NodeGroup
from pd.workload.arrival import Arrival, Workload

BLOCK_BYTES = 1 << 20
# 10 ms a step, 0.1 ms a token, 1 us a token of context that decode reads.
COST = CostModel(
    overhead_s=0.01,
    linear=Curve(((1, 1e-4), (1000, 0.1))),
    attention=Attention(decode=Curve(((1, 1e-6), (1_000_000, 1.0)))),
    links={"shm": Link(1e-4, 1e10), "tcp": Link(1e-3, 1e9)},
)


def make_spec(
    prefill: int = 1,
    decode: int = 1,
    mixed: int = 0,
    *,
    num_blocks: int = 400,
    options: dict[str, Any] | None = None,
    group: dict[str, Any] | None = None,
    **more: Any,
) -> CellSpec:
    """Blocks of 16 tokens; `options` are of the configuration, `group` of every group."""
    config = Config.from_dict(
        None, **{"max_num_batched_tokens": 512, "pool_dram_gib": 0, **(options or {})}
    )
    counts = {"prefill": prefill, "decode": decode, "mixed": mixed}
    groups = tuple(
        NodeGroup(role, count, COST, num_blocks, BLOCK_BYTES, **(group or {}))  # type: ignore[arg-type]
        for role, count in counts.items()
        if count
    )
    return CellSpec(groups, config, **more)


def random_workload(seed: int, count: int = 60, rate: float = 5.0) -> Workload:
    """Prompts of which many begin alike, in ids of 64 tokens."""
    rng = Random(seed)
    arrivals, now, next_id = [], 0.0, 1000
    known: list[tuple[int, ...]] = [()]
    for _ in range(count):
        now += rng.expovariate(rate)
        num_prompt = rng.randint(1, 700)
        need = -(-num_prompt // 64)
        begins = rng.choice(known)[: max(0, need - 1)]
        fresh = tuple(range(next_id, next_id + need - len(begins)))
        next_id += len(fresh)
        prefix = (*begins, *fresh)
        known.append(prefix[: num_prompt // 64])
        arrivals.append(Arrival(now, num_prompt, rng.randint(1, 120), prefix))
    return Workload(f"random {seed}", arrivals, 64)


def check_idle(cell: SimCell) -> None:
    """Assert that nothing is held anywhere once all requests have ended, a little later."""
    cell.queue.run_until(cell.now + 60.0)
    assert not cell.gateway.running
    for member in cell.members.values():
        if isinstance(member, SimNode | SimPool):
            member.core.check_idle()
    assert not cell.coordinator._assigned and not cell.coordinator._parked
