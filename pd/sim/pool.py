"""A simulated pool: the live `PoolCore`, and a disk that does one thing at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.pool.core import PoolCore
from kvstore.pool.effects import DiskErase, DiskOutcome, DiskRead, DiskWrite
from pd.cost.model import CostModel, Link
from pd.messages import NodeHello
from pd.sim.member import SimMember

if TYPE_CHECKING:
    from pd.sim.cell import SimCell


@dataclass
class SimDisk:
    """What lies in each slot, oldest first: it is still there when its pool is started anew."""

    link: Link
    slots: dict[int, bytes] = field(default_factory=dict)
    busy_until: float = 0.0

    def recover(self) -> Iterator[tuple[int, bytes]]:
        return iter(self.slots.items())


class SimPool(SimMember):
    """Drives one pool. A write that was not over when its process was killed is lost."""

    core: PoolCore

    def __init__(
        self, cell: SimCell, core: PoolCore, disk: SimDisk, hello: NodeHello, cost: CostModel,
        block_bytes: int,
    ) -> None:  # fmt: skip
        super().__init__(cell, core, hello, cost, block_bytes)
        self._disk = disk

    def _before(self, now: float) -> None:
        """A pool does nothing by itself."""

    def _after(self, now: float) -> None:
        core = self.core
        core.tick(now)
        for effect in core.drain():
            if isinstance(effect, DiskRead | DiskWrite | DiskErase):
                self._do_on_disk(effect, now)
            else:
                self._do(effect)
        self._set_alarm(now)

    def _do_on_disk(self, effect: DiskRead | DiskWrite | DiskErase, now: float) -> None:
        disk = self._disk
        if isinstance(effect, DiskErase):
            disk.slots.pop(effect.slot, None)
            return
        disk.busy_until = max(now, disk.busy_until) + self.block_bytes / disk.link.bytes_per_s
        self.cell.queue.at(disk.busy_until + disk.link.latency_s, self._disk_did, effect)

    def _disk_did(self, effect: DiskRead | DiskWrite) -> None:
        if self._held_back(self._disk_did, effect):
            return
        if isinstance(effect, DiskWrite):
            self._disk.slots.pop(effect.slot, None)
            self._disk.slots[effect.slot] = effect.key
            done = DiskOutcome("write", effect.slot, effect.key, ok=True)
        else:
            ok = self._disk.slots.get(effect.slot) == effect.key
            done = DiskOutcome("read", effect.slot, effect.key, ok=ok)
        self.core.on_disk(done)
        self._after(self.cell.now)
