"""All of a node's transports behind one door."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from kvstore.arena import KVArena
from kvstore.transfer import Push
from kvstore.transport.base import LAYOUT, EventQueue, LocalNode, Transport, TransportSettings
from kvstore.transport.events import Pushed, TransferEvent
from kvstore.transport.inproc import InprocTransport
from kvstore.transport.nixl_ucx import NixlTransport
from kvstore.transport.shm import ShmTransport
from kvstore.transport.torch_p2p import TorchTransport
from kvstore.transport.zmq_tcp import ZmqTransport
from pd.errors import ConfigError, TransferError
from pd.types import Peer

log = logging.getLogger(__name__)

_TRANSPORTS: dict[str, Callable[[LocalNode], Transport]] = {
    "inproc": InprocTransport,
    "shm": ShmTransport,
    "zmq": ZmqTransport,
    "torch": TorchTransport,
    "nixl": NixlTransport,
}

# What a host may lack without anything being wrong with it.
_OPTIONAL = ("torch", "nixl")


class TransportHub:
    """Moves blocks between this node's arena and its peers', by the best way both have.

    `transports` are the ways this node has, the most wanted first. Nothing here blocks:
    work happens in the transports' threads, its outcome waits in `poll`, and `on_event` is
    called from those threads whenever something is there (`Mailbox.wake`). Methods are for
    one thread, the owner's. `epoch` has to be set once the node has one.
    """

    def __init__(
        self,
        node_id: str,
        cluster_id: int,
        arena: KVArena,
        *,
        transports: Sequence[str] = ("shm", "zmq"),
        settings: TransportSettings | None = None,
        on_event: Callable[[], None] | None = None,
    ) -> None:
        unknown = set(transports) - set(_TRANSPORTS)
        if unknown or not transports:
            names = ", ".join(_TRANSPORTS)
            raise ConfigError(f"transports {list(transports)}: name one or more of {names}")
        self._events = EventQueue(on_event)
        self._node = LocalNode(
            node_id, cluster_id, arena, settings or TransportSettings(), self._events
        )
        self._peers: dict[str, tuple[Peer, Transport | None]] = {}
        self._transports: dict[str, Transport] = {}
        try:
            for name in transports:
                self._start(name, last=name == transports[-1])
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, last: bool) -> None:
        try:
            self._transports[name] = _TRANSPORTS[name](self._node)
        except ConfigError as error:
            if name not in _OPTIONAL or (last and not self._transports):
                raise
            log.warning("%s does without %s: %s", self._node.id, name, error)

    @property
    def epoch(self) -> int:
        return self._node.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._node.epoch = epoch

    @property
    def counters(self) -> Counter[str]:
        """`refused` counts messages that did not fit any grant, or no protocol."""
        return self._node.counters

    def endpoints(self) -> dict[str, str]:
        """What peers need to reach this node, by transport, and to know of its KV; part of its
        `Peer`."""
        layout = self._node.arena.layout.describe()
        return {LAYOUT: layout, **{name: way.endpoint for name, way in self._transports.items()}}

    # ------------------------------------------------------------------ peers
    def connect(self, peer: Peer) -> None:
        """Learn a peer, or its successor in a later epoch. Nothing happens if it is known."""
        known = self._peers.get(peer.id)
        if known is not None:
            if known[0] == peer:
                return
            self.forget_peer(peer.id)
        self._peers[peer.id] = peer, self._choose(peer)

    def forget_peer(self, peer_id: str) -> None:
        """Hang up on a peer: what is on its way to it comes back not ok."""
        _, transport = self._peers.pop(peer_id, (None, None))
        if transport is not None:
            transport.forget_peer(peer_id)

    def transport_of(self, peer_id: str) -> str | None:
        """The name of the transport that pushes to this peer take."""
        _, transport = self._peers.get(peer_id, (None, None))
        return None if transport is None else transport.name

    def _choose_again(self, peer: Peer, transport: Transport) -> Transport | None:
        """Another transport if this one turned out not to work with this peer."""
        if (transport.name, peer.id, peer.epoch) not in self._node.unusable:
            return transport
        transport.forget_peer(peer.id)
        other = self._choose(peer)
        self._peers[peer.id] = peer, other
        return other

    def _choose(self, peer: Peer) -> Transport | None:
        reasons = []
        for name, transport in self._transports.items():
            if (name, peer.id, peer.epoch) in self._node.unusable:
                reasons.append(f"{name}: it could not be set up")
                continue
            if name not in peer.endpoints:
                reasons.append(f"{name}: the peer does not have it")
                continue
            try:
                transport.connect(peer)
            except TransferError as error:
                reasons.append(f"{name}: {error}")
                continue
            log.info("blocks to %s go by %s%s", peer.id, name, _because(reasons))
            return transport
        # Gateways and coordinators are peers, too; they have no blocks.
        if set(peer.endpoints) & set(_TRANSPORTS):
            log.warning("no way to send blocks to %s%s", peer.id, _because(reasons))
        return None

    # ------------------------------------------------------------------ blocks
    def expect(
        self, transfer_id: int, sender: str, sender_epoch: int, blocks: Sequence[int]
    ) -> None:
        """Let this sender, and nobody else, fill these blocks of ours."""
        self._node.expected.expect(transfer_id, sender, sender_epoch, blocks)

    def forget(self, transfer_id: int) -> None:
        """Accept nothing more of a transfer. When this returns, no thread of this process
        writes into its blocks; a sender that maps them has to say so itself."""
        self._node.expected.forget(transfer_id)

    def push(self, job: Push) -> None:
        """Send blocks. Comes back as one `Pushed`, ok or not."""
        peer, transport = self._peers.get(job.receiver, (None, None))
        if peer is not None and transport is not None and self._node.unusable:
            transport = self._choose_again(peer, transport)
        if peer is None or transport is None or peer.epoch != job.receiver_epoch:
            self._events.put(Pushed(job.transfer_id, job.first, len(job.src), False))
        else:
            transport.push(job)

    def cancel(self, transfer_id: int) -> None:
        """Drop what is queued of a transfer: its pushes come back, not ok."""
        for transport in self._transports.values():
            transport.cancel(transfer_id)

    def poll(self) -> list[TransferEvent]:
        """What happened since the last call, in order."""
        return self._events.drain()

    def close(self) -> None:
        """End all transports. Pushes under way come back, not ok. The arena stays."""
        for transport in self._transports.values():
            transport.close()
        self._events.on_event = None


def _because(reasons: Sequence[str]) -> str:
    return f" ({'; '.join(reasons)})" if reasons else ""
