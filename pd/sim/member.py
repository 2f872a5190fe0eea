"""A simulated process of the cell that drives a live core: what nodes and pools have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kvstore.transfer import Push
from kvstore.transport.events import Arrived, Pushed, TransferEvent
from pd.cost.model import CostModel
from pd.messages import Message, NodeHello, PeerLost, Peers, Welcome
from pd.outbox import CancelPush, Expect, Forget, Send

if TYPE_CHECKING:
    from pd.sim.cell import SimCell


class Core(Protocol):
    """A live brain."""

    node_id: str
    epoch: int

    @property
    def at_rest(self) -> bool: ...
    def on_message(self, sender: str, message: Message, now: float) -> None: ...
    def on_transfer(self, event: TransferEvent, now: float) -> None: ...
    def tick(self, now: float) -> None: ...
    def next_tick(self) -> float: ...
    def drain(self) -> Any: ...


class SimMember(ABC):
    """One process: events in, its core's effects out, and an alarm for when its core is due.

    `peers` are the epochs it knows the others by; `expected` the transfers that may write here.
    """

    def __init__(
        self, cell: SimCell, core: Core, hello: NodeHello, cost: CostModel, block_bytes: int
    ) -> None:
        self.cell = cell
        self.core = core
        self.hello = hello
        self.cost = cost
        self.block_bytes = block_bytes
        self.id = hello.node_id
        self.alive = True
        self.frozen = False
        self.peers: Mapping[str, int] = {}
        self._expected: dict[int, str] = {}
        self._queued: dict[int, list[tuple[float, Push]]] = {}  # pushes and when they begin
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._alarm_at = -math.inf

    @property
    def epoch(self) -> int:
        return self.core.epoch

    # -------------------------------------------------------------- events in
    def hear(self, sender: str, epoch: int, message: Message) -> None:
        """A message has come, from a process of this epoch."""
        if self._held_back(self.hear, sender, epoch, message):
            return
        if epoch < self.peers.get(sender, 0):
            return  # from a process known to be replaced
        now = self.cell.queue.now
        self._before(now)
        if isinstance(message, Welcome):
            self.core.epoch = message.epoch
        elif isinstance(message, Peers):
            self.peers = self.cell.epochs_of(message)
        elif self.core.epoch:
            if isinstance(message, PeerLost):
                self._expected = {t: s for t, s in self._expected.items() if s != message.id}
            self.core.on_message(sender, message, now)
        self._after(now)

    def landed(self, push: Push, sender: str) -> None:
        """Blocks are in our pages, if we still expect them."""
        if self._held_back(self.landed, push, sender):
            return
        if self._expected.get(push.transfer_id) != sender:
            return
        now = self.cell.now
        self._before(now)
        num_bytes = len(push.dst) * self.block_bytes
        arrived = Arrived(push.transfer_id, push.first, len(push.dst), True, num_bytes)
        self.core.on_transfer(arrived, now)
        self._after(now)

    def pushed(self, push: Push, began: float, ok: bool) -> None:
        """A push of ours is over."""
        if self._held_back(self.pushed, push, began, ok):
            return
        queued = self._queued.get(push.transfer_id)
        if queued is not None:
            queued[:] = [item for item in queued if item[1] is not push]
            if not queued:
                del self._queued[push.transfer_id]
        now = self.cell.now
        self._before(now)
        count = len(push.src)
        self.core.on_transfer(
            Pushed(push.transfer_id, push.first, count, ok, now - began, count * self.block_bytes),
            now,
        )
        self._after(now)

    def catch_up(self) -> None:
        """Bring the core to now."""
        if not self.frozen:
            self._before(self.cell.now)

    def freeze(self) -> None:
        """Do nothing until `thaw`, as if stopped by a signal."""
        self.catch_up()
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for call, args in held:
            self.cell.queue.at(self.cell.now, call, *args)

    def end(self) -> None:
        """The process is killed: what it had drawn until now has left it."""
        self.catch_up()
        self.alive = False

    # -------------------------------------------------------------- what differs
    @abstractmethod
    def _before(self, now: float) -> None:
        """Bring the core to `now`, before it hears of anything."""

    @abstractmethod
    def _after(self, now: float) -> None:
        """Let the core act on what it heard."""

    # -------------------------------------------------------------- inside
    def _held_back(self, call: Callable[..., None], *args: Any) -> bool:
        """Whether this process cannot notice anything now."""
        if self.frozen and self.alive:
            self._held.append((call, args))
        return self.frozen or not self.alive

    def _alarm(self, at: float) -> None:
        if at != self._alarm_at or self._held_back(self._alarm, at):
            return
        now = self.cell.queue.now
        self._alarm_at = -math.inf
        self._before(now)
        self._after(now)

    def _set_alarm(self, now: float) -> None:
        """Wake up when the core is due, unless all it could say is that it is alive."""
        core = self.core
        if core.at_rest and not self.cell.spec.can_hang:
            return
        due = core.next_tick()
        if due <= now:  # a tick was just made: it waits for something to be heard
            due = now + self.cell.spec.config.cluster.heartbeat_s
        if not now < self._alarm_at <= due:
            self._alarm_at = due
            self.cell.queue.at(due, self._alarm, due)

    def _do(self, effect: Any) -> None:
        kind = type(effect)
        if kind is Send:
            self.cell.post(self, effect.to, effect.message)
        elif kind is Push:
            begins = self.cell.push(self, effect)
            self._queued.setdefault(effect.transfer_id, []).append((begins, effect))
        elif kind is Expect:
            self._expected[effect.transfer_id] = effect.sender
        elif kind is Forget:
            self._expected.pop(effect.transfer_id, None)
        elif kind is CancelPush:
            self._cancel(effect.transfer_id)

    def _cancel(self, transfer_id: int) -> None:
        """Pushes that have not begun come back undone; the others go on."""
        now, queue = self.cell.now, self.cell.queue
        for begins, push in self._queued.get(transfer_id, ()):
            if begins > now and self.cell.withdraw(push):
                queue.at(now, self.pushed, push, begins, False)
