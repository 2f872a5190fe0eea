"""One node core with everything around it played by the test: each effect it has is asserted."""

from __future__ import annotations

from typing import Any, TypeVar

from cell.network import Address
from cell.node import SimNode
from cell.oracle import OracleEngine
from cell.workload import make_request

from kvstore.blocks import BlockPool
from kvstore.transport.events import Arrived, Pushed
from pd.messages import COORDINATOR, Interrupted, Message, Reserve, StartPrefill, Tokens
from pd.node.core import NodeCore, NodeLimits
from pd.outbox import Effect, Push, Send
from pd.types import Role, TokenEvent, Work

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=Effect)
LEASE_S = 2.0


class NodeDriver:
    """`sent` and `effects` return what is new since they (or `clear`) were last called."""

    def __init__(
        self, node_id: str, role: Role, *, num_blocks: int = 20, block_size: int = 4, **limits: Any
    ) -> None:
        limits = {"max_num_batched_tokens": 8, "max_num_seqs": 8, "lease_s": LEASE_S, **limits}
        pool = BlockPool(num_blocks, block_size)
        self.core = NodeCore(node_id, role, pool, NodeLimits(**limits), 0xFEED)
        self.core.epoch = 1
        self.node = SimNode(self.core, OracleEngine(num_blocks, block_size), Address(node_id, 1))
        self.pool = pool
        self.now = 0.0
        self._pending: list[Effect] = []

    # ------------------------------------------------------------ events in
    def hear(self, sender: str, message: Message) -> None:
        self.core.on_message(sender, message, self.now)
        self.node.check()

    def order(self, message: Message) -> None:
        self.hear(COORDINATOR, message)

    def start_prefill(self, work: Work, transfer_id: int = 1, decode: str = "d0") -> None:
        self.order(StartPrefill(work, transfer_id, decode, 1))

    def reserve(self, work: Work, transfer_id: int = 1) -> None:
        self.order(Reserve(work, transfer_id, "p0", 1))

    def pushed(self, push: Push, *, ok: bool = True) -> None:
        self.core.on_transfer(Pushed(push.transfer_id, push.first, len(push.src), ok), self.now)
        self.node.check()

    def arrived(self, first: int, count: int, transfer_id: int = 1, *, ok: bool = True) -> None:
        self.core.on_transfer(Arrived(transfer_id, first, count, ok), self.now)
        self.node.check()

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.core.tick(self.now)
        self.node.check()

    def begin_step(self) -> bool:
        """Whether there was something to run."""
        self.node.begin_step(self.now)
        self.node.check()
        return self.node.plan is not None

    def finish_step(self) -> None:
        self.now += 0.01
        self.node.finish_step(self.now)
        self.node.check()

    def step(self) -> None:
        assert self.begin_step(), "there is nothing to run"
        self.finish_step()

    # ------------------------------------------------------------ effects out
    def effects(self, kind: type[E]) -> list[E]:
        self._pending += self.core.drain()
        found = [effect for effect in self._pending if isinstance(effect, kind)]
        self._pending = [effect for effect in self._pending if not isinstance(effect, kind)]
        return found

    def sent(self, kind: type[M], to: str | None = None) -> list[M]:
        sends = self.effects(Send)
        found = [s for s in sends if isinstance(s.message, kind) and to in (None, s.to)]
        self._pending += [s for s in sends if s not in found]
        return [s.message for s in found]  # type: ignore[misc]

    def tokens(self) -> list[TokenEvent]:
        return [event for message in self.sent(Tokens) for event in message.rows()]

    def interrupted(self) -> list[tuple[int, ...]]:
        return [message.indices for message in self.sent(Interrupted)]

    def clear(self) -> None:
        self.core.drain()
        self._pending.clear()

    @property
    def num_held(self) -> int:
        return self.pool.num_blocks - self.pool.num_free


def make_work(
    num_tokens: int = 10,
    *,
    n: int = 1,
    attempt: int = 0,
    name: str = "r",
    first: int = 100,
    **request: Any,
) -> Work:
    """`first` is the prompt's first token: prompts with the same one share their beginning."""
    prompt = tuple(range(first, first + num_tokens))
    return Work(make_request(name, prompt, n=n, **request), tuple(range(n)), attempt=attempt)
