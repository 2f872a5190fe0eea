"""A coordinator driven one event at a time, by its members and by block holders."""

from __future__ import annotations

from typing import Any, TypeVar

from kvstore.prefix import block_hashes, short_keys
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.messages import (
    BlockEvents,
    GatewayHello,
    Heartbeat,
    Message,
    NodeHello,
    Rejected,
    Snapshot,
    StartPrefill,
    Submit,
)
from pd.outbox import Effect, Send
from pd.router import RouterOptions
from pd.types import NodeSnapshot, Request, Role, SamplingParams, Tier, Work

M = TypeVar("M", bound=Message)

LAYOUT, BLOCK_SIZE = 1, 4


class Driver:
    """`sent` returns what is new since it (or `clear`) was last called, with its receivers."""

    def __init__(self, *roles: tuple[str, Role], **limits: Any) -> None:
        self.coordinator = Coordinator(
            CoordinatorLimits(node_timeout_s=5.0, recovery_timeout_s=30.0, **limits)
        )
        self.now = 0.0
        self.incarnations = 0
        self.seqs: dict[str, int] = {}  # of block events, by holder
        self._effects: list[Effect] = []
        self.hear("g", GatewayHello("g", 1, {}))
        for node_id, role in roles:
            self.join(node_id, role)
        self.clear()

    @property
    def options(self) -> RouterOptions:
        return self.coordinator.limits.router

    def hear(self, sender: str, message: Message) -> None:
        self.coordinator.on_message(sender, message, self.now)

    def join(self, node_id: str, role: Role, host: str = "host", **sizes: Any) -> int:
        self.incarnations += 1
        self.seqs[node_id] = 0
        values: dict[str, Any] = {
            "num_blocks": 20, "max_model_len": 80, "max_num_seqs": 8, "layout": LAYOUT,
            "prefill_rate": 0.0, "steps": (), **sizes,
        }  # fmt: skip
        self.hear(
            node_id,
            NodeHello(
                node_id, role, self.incarnations, {}, values["layout"], values["num_blocks"],
                BLOCK_SIZE, values["max_model_len"], values["max_num_seqs"], 0, host,
                prefill_rate=values["prefill_rate"], steps=values["steps"],
            ),
        )  # fmt: skip
        return self.incarnations

    def lose(self, node_id: str) -> None:
        incarnation = self.coordinator.members.nodes[node_id].hello.incarnation
        self.coordinator.on_process_lost(node_id, incarnation, self.now, "was killed")

    def submit(
        self,
        name: str = "r",
        num_tokens: int = 10,
        *,
        prompt: tuple[int, ...] | None = None,
        attempt: int = 0,
        output: tuple[int, ...] = (),
        gateway: str = "g",
        n: int = 1,
        max_tokens: int = 8,
        **more: Any,
    ) -> Work:
        params = SamplingParams(n=n, max_tokens=max_tokens)
        request = Request(name, gateway, prompt or (1,) * num_tokens, params, **more)
        work = Work(request, tuple(range(n)), output, attempt)
        self.hear(gateway, Submit(work))
        return work

    def tick(self, seconds: float = 0.0) -> None:
        """Time passes; everybody is heard of."""
        end = self.now + seconds
        while True:
            for member_id in (*self.coordinator.members.nodes, *self.coordinator.members.gateways):
                self.hear(member_id, Heartbeat(member_id))
            self.coordinator.tick(self.now)
            if self.now >= end:
                return
            self.now = min(end, self.now + 1.0)

    # ------------------------------------------------------------ blocks
    def keys(self, prompt: tuple[int, ...], tenant: str = "", salt: str = "") -> bytes:
        """Those of a prompt's full blocks, as block events carry them."""
        root = self.options.key_space.root(LAYOUT, tenant, salt)
        keys = short_keys(block_hashes(prompt, BLOCK_SIZE, root))
        return b"".join(key.to_bytes(8, "little") for key in keys)

    def stores(
        self,
        holder: str,
        prompt: tuple[int, ...],
        *,
        tier: Tier = "node",
        reset: bool = False,
        skip: int = 0,
        removed: bytes = b"",
        **owner: str,
    ) -> None:
        """The holder reports the blocks of a prompt; `skip` messages before this were lost."""
        self.seqs[holder] += 1 + skip
        stored = self.keys(prompt, **owner)
        self.hear(holder, BlockEvents(self.seqs[holder], reset, tier, stored, removed))

    def snapshot(self, node_id: str, **values: Any) -> None:
        """A node reports; by default it has heard of everything sent so far."""
        node = self.coordinator.members.nodes[node_id]
        values = {"last_transfer_id": 1 << 40, "num_blocks": 20, "free_blocks": 20, **values}
        self.hear(node_id, Snapshot(NodeSnapshot(node_id, node.hello.role, node.epoch, **values)))

    def placed(self, name: str = "r", **more: Any) -> tuple[str, StartPrefill]:
        """Submit, and say where its prefill was sent."""
        self.submit(name, **more)
        ((to, start),) = self.sent(StartPrefill)
        return to, start

    # ------------------------------------------------------------ what it sent
    def sent(self, kind: type[M]) -> list[tuple[str, M]]:
        self._effects += self.coordinator.drain()
        found = [e for e in self._effects if isinstance(e, Send) and isinstance(e.message, kind)]
        self._effects = [e for e in self._effects if e not in found]
        return [(e.to, e.message) for e in found]  # type: ignore[misc]

    def rejected(self) -> Rejected:
        ((to, message),) = self.sent(Rejected)
        assert to == "g" and not self.sent(StartPrefill)
        return message

    def clear(self) -> None:
        self.coordinator.drain()
        self._effects.clear()

    @property
    def num_requests(self) -> int:
        return self.coordinator.status(self.now).num_requests
