"""How blocks get from a node's KV to its transports and back.

Transports move host memory. On a CPU that is the KV arena itself. On a GPU an arena in host
memory stands beside the one on the device: a block is copied out before it is pushed, and in
after it has arrived, by the compute thread and in its order. So a page that is reused is
always written by its new owner after any copy its old owner had ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvstore.transfer import Push
from kvstore.transport.events import Arrived, TransferEvent
from kvstore.transport.hub import TransportHub
from pd.node.compute import ComputeThread, StepEngine
from pd.outbox import CancelPush, Expect, Forget


class DeviceEngine(StepEngine, Protocol):
    """An engine whose KV is not in host memory."""

    def save_blocks(self, ids: list[int], out: NDArray[np.uint8]) -> None: ...

    def load_blocks(self, ids: list[int], data: NDArray[np.uint8]) -> None: ...


class BlockMover:
    """Carries out what a node core asks of its transports; KV lies in the transports' arena."""

    def __init__(self, hub: TransportHub) -> None:
        self.hub = hub

    def act(self, effect: Expect | Forget | Push | CancelPush) -> None:
        hub = self.hub
        if isinstance(effect, Expect):
            hub.expect(effect.transfer_id, effect.sender, effect.sender_epoch, effect.blocks)
        elif isinstance(effect, Forget):
            hub.forget(effect.transfer_id)
        elif isinstance(effect, CancelPush):
            hub.cancel(effect.transfer_id)
        else:
            hub.push(effect)

    def poll(self, report: Callable[[TransferEvent], None]) -> None:
        """Report what has happened, from the loop's thread, now or in a later turn."""
        for event in self.hub.poll():
            report(event)


class DeviceBlockMover(BlockMover):
    """The same with the KV on a device. `blocks` is the host arena, uint8 [B, block_bytes]."""

    def __init__(
        self,
        hub: TransportHub,
        compute: ComputeThread[Any],
        blocks: NDArray[np.uint8],
    ) -> None:
        super().__init__(hub)
        self._compute = compute
        self._blocks = blocks
        self._expected: dict[int, tuple[int, ...]] = {}

    def act(self, effect: Expect | Forget | Push | CancelPush) -> None:
        if isinstance(effect, Push):
            self._push(effect)
            return
        if isinstance(effect, Expect):
            self._expected[effect.transfer_id] = effect.blocks
        elif isinstance(effect, Forget):
            self._expected.pop(effect.transfer_id, None)
        super().act(effect)

    def poll(self, report: Callable[[TransferEvent], None]) -> None:
        for event in self.hub.poll():
            if isinstance(event, Arrived) and event.ok and event.transfer_id in self._expected:
                self._load(event, report)
            else:
                report(event)

    def _push(self, push: Push) -> None:
        ids = list(push.src)

        def save(engine: DeviceEngine) -> None:
            out = np.empty((len(ids), self._blocks.shape[1]), np.uint8)
            engine.save_blocks(ids, out)
            self._blocks[ids] = out

        self._compute.call(save, lambda: self.hub.push(push))

    def _load(self, event: Arrived, report: Callable[[TransferEvent], None]) -> None:
        blocks = self._expected[event.transfer_id]
        ids = list(blocks[event.first : event.first + event.count])
        self._compute.call(
            lambda engine: engine.load_blocks(ids, self._blocks[ids]), lambda: report(event)
        )
