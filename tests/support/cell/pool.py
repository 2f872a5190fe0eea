"""A simulated pool process: a real `PoolCore` over pages and a disk that survives it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cell.network import Address, Link
from cell.oracle import DAMAGED
from kvstore.pool.core import PoolCore
from kvstore.pool.effects import DiskEffect, DiskErase, DiskOutcome, DiskWrite
from pd.outbox import Expect


@dataclass
class SimDisk:
    """What lies in each slot, whoever wrote it, oldest first."""

    slots: dict[int, tuple[bytes, list[int]]] = field(default_factory=dict)

    def recover(self) -> list[tuple[int, bytes]]:
        return [(slot, key) for slot, (key, _) in self.slots.items()]


class PoolPages:
    """The pool's memory, as nodes' engines have it."""

    def __init__(self, num_pages: int) -> None:
        self.pages: list[list[int]] = [[] for _ in range(num_pages)]


@dataclass(eq=False)
class SimPool:
    """`work` is what its disk has to do, in order; the rest is as with a `SimNode`."""

    core: PoolCore
    engine: PoolPages
    address: Address
    disk: SimDisk
    expected: dict[int, Expect] = field(default_factory=dict)
    work: list[DiskEffect] = field(default_factory=list)
    peers: dict[str, int] = field(default_factory=dict)
    frozen: bool = False
    link: Link = field(init=False)
    plan: None = None

    @property
    def idle(self) -> bool:
        core = self.core
        return core.tiers.idle and not (self.work or core.receiving or core.serving)

    def begin_step(self, now: float) -> None:
        """A pool computes nothing."""

    def do_disk(self, *, fail: bool) -> None:
        """The oldest operation takes place; a failed write may leave anything in the slot."""
        effect, pages = self.work.pop(0), self.engine.pages
        slots = self.disk.slots
        if isinstance(effect, DiskErase):
            slots.pop(effect.slot, None)
            return
        if isinstance(effect, DiskWrite):
            slots.pop(effect.slot, None)
            if not fail:
                slots[effect.slot] = effect.key, list(pages[effect.page])
            self.core.on_disk(DiskOutcome("write", effect.slot, effect.key, ok=not fail))
        else:
            key, content = slots.get(effect.slot, (b"", []))
            fail = fail or key != effect.key
            pages[effect.page] = [DAMAGED] * len(content) if fail else list(content)
            self.core.on_disk(DiskOutcome("read", effect.slot, effect.key, ok=not fail))

    def check(self) -> None:
        self.core.check()

    def reads(self, transfer_id: int) -> set[int]:
        """Pages that are held for pushes of this transfer."""
        serving = self.core.serving.get(transfer_id)
        keys = [] if serving is None else serving.keys[: serving.offered]
        return {page for page in map(self.core.tiers.page_of, keys) if page is not None}

    def writes(self, transfer_id: int) -> set[int]:
        """Pages that this transfer may fill."""
        receiving = self.core.receiving.get(transfer_id)
        return set() if receiving is None else set(receiving.transfer.blocks)
