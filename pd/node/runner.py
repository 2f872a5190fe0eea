"""The live loop around a node's brain: sockets, copies, clock and compute meet `NodeCore`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pd.mailbox import Mailbox
from pd.messages import NodeHello
from pd.node.blockmover import BlockMover
from pd.node.compute import ComputeThread, StepDone
from pd.node.core import NodeCore
from pd.node.loop import MemberLoop
from pd.types import Peer


class NodeRunner(MemberLoop[NodeCore]):
    """Drives one node. It ends, raising what a step raised, when its engine fails: it is to be
    replaced rather than trusted."""

    def __init__(
        self,
        core: NodeCore,
        mailbox: Mailbox,
        mover: BlockMover,
        compute: ComputeThread[Any],
        coordinator: Peer,
        hello: NodeHello,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(core, mailbox, mover, coordinator, hello, clock)
        self._compute = compute

    def _collect(self) -> bool:
        finished = self._compute.poll()
        for done in finished:
            if isinstance(done, StepDone):
                self._core.commit(done.samples, self._clock())
            else:
                done.then()
        return bool(finished)

    def _advance(self) -> None:
        core = self._core
        if core.busy:
            return
        plan = core.plan(self._clock())
        if plan is not None:
            # The plan may use pages that a hand-off has just given back: late bytes of
            # its sender must not land in them.
            for grant in core.outbox.drain_grants():
                self._mover.act(grant)
            # Before the other effects: what the last step drew leaves while this runs.
            self._compute.submit(plan)
