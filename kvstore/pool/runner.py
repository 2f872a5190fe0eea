"""The live loop around a pool's brain: sockets, copies, disk and clock meet `PoolCore`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kvstore.arena import KVArena
from kvstore.pool.core import PoolCore
from kvstore.pool.disk import DiskTier
from kvstore.pool.effects import DiskErase, DiskOutcome, DiskRead, DiskWrite
from pd.mailbox import Mailbox
from pd.messages import NodeHello
from pd.node.blockmover import BlockMover
from pd.node.loop import MemberLoop
from pd.types import Peer


class PoolRunner(MemberLoop[PoolCore]):
    """Drives one pool node. `disk` is None where it has no disk tier."""

    def __init__(
        self,
        core: PoolCore,
        mailbox: Mailbox,
        mover: BlockMover,
        arena: KVArena,
        disk: DiskTier | None,
        coordinator: Peer,
        hello: NodeHello,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(core, mailbox, mover, coordinator, hello, clock)
        self._arena = arena
        self._disk = disk
        self._refused: list[DiskOutcome] = []

    def _collect(self) -> bool:
        finished, self._refused = self._refused, []
        if self._disk is not None:
            for done in self._disk.poll():
                if done.kind != "erase":
                    finished.append(DiskOutcome(done.kind, done.slot, done.key, done.ok))
        for outcome in finished:
            self._core.on_disk(outcome)
        return bool(finished)

    def _do(self, effect: Any) -> None:
        if isinstance(effect, DiskWrite | DiskRead | DiskErase):
            self._do_on_disk(effect)
        else:
            super()._do(effect)

    def _do_on_disk(self, effect: DiskWrite | DiskRead | DiskErase) -> None:
        assert self._disk is not None
        if isinstance(effect, DiskErase):
            self._disk.erase(effect.slot)
            return
        page, slot, key = self._arena.blocks[effect.page], effect.slot, effect.key
        if isinstance(effect, DiskWrite):
            if not self._disk.write(slot, key, page):
                self._refused.append(DiskOutcome("write", slot, key, ok=False))
        elif not self._disk.read(slot, key, page):
            self._refused.append(DiskOutcome("read", slot, key, ok=False))
