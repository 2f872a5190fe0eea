"""Blocks between nodes of one process: a copy, and the same checks as everywhere."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from typing import ClassVar

from kvstore.convert import payload_layout
from kvstore.layout import KVLayout
from kvstore.transfer import Push
from kvstore.transport import placing
from kvstore.transport.base import LocalNode, PushState, Transport, layout_of, start_thread
from kvstore.transport.events import Arrived
from pd.errors import TransferError
from pd.types import Peer

_here: dict[str, InprocTransport] = {}  # the transports of this process by endpoint


class InprocTransport(Transport):
    """Copies straight into the arena of a node of the same process."""

    name: ClassVar[str] = "inproc"

    def __init__(self, node: LocalNode) -> None:
        super().__init__(node)
        self.endpoint = secrets.token_hex(16)
        self._peers: dict[str, tuple[Peer, KVLayout]] = {}  # and the layout of what it is sent
        self._jobs: deque[PushState] = deque()
        self._changed = threading.Condition()
        self._closed = False
        _here[self.endpoint] = self
        self._thread = start_thread(self._run, f"{node.id}-inproc")

    def connect(self, peer: Peer) -> None:
        if peer.endpoints[self.name] not in _here:
            raise TransferError(f"{peer.id} is not in this process")
        layout = layout_of(peer, self.node)
        payload = payload_layout(self.node.arena.layout, layout, layout.dtype)
        self._peers[peer.id] = peer, payload

    def forget_peer(self, peer_id: str) -> None:
        self._peers.pop(peer_id, None)

    def push(self, job: Push) -> None:
        _, payload = self._peers.get(job.receiver, (None, self.node.arena.layout))
        num_bytes = len(job.src) * payload.block_bytes
        with self._changed:
            if not self._closed and len(self._jobs) < self.node.settings.max_queued_pushes:
                self._jobs.append(PushState(job, 1, num_bytes, time.monotonic()))
                self._changed.notify()
                return
        self._refuse(job)

    def cancel(self, transfer_id: int) -> None:
        with self._changed:
            dropped = [state for state in self._jobs if state.job.transfer_id == transfer_id]
            for state in dropped:
                self._jobs.remove(state)
        for state in dropped:
            self._done(state, False)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        _here.pop(self.endpoint, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                state = self._jobs.popleft()
            self._done(state, not self._closed and self._copy(state.job))

    def _done(self, state: PushState, ok: bool) -> None:
        event = state.piece_done(ok, time.monotonic())
        assert event is not None
        self.node.events.put(event)

    def _copy(self, job: Push) -> bool:
        peer, payload = self._peers.get(job.receiver, (None, self.node.arena.layout))
        target = _here.get(peer.endpoints[self.name]) if peer else None
        if target is None or peer is None or peer.epoch != job.receiver_epoch:
            return False
        ours, theirs = self.node, target.node
        grant = theirs.expected.find(job.transfer_id, ours.id, ours.epoch)
        same = theirs.epoch == peer.epoch and theirs.arena.layout == layout_of(peer, ours)
        if grant is None or not same:
            theirs.counters["refused"] += 1
            return False
        count = len(job.src)
        pages = theirs.expected.fill(grant, job.first, count)
        ok = bool(pages)
        if ok:
            verify = ours.settings.verify
            with theirs.expected.lock:
                if not grant.open:
                    return False
                sent = placing.place(
                    ours.arena, job.src, theirs.arena, pages, payload, verify=verify
                )
            ok = not verify or placing.placed_digest(theirs.arena, pages, payload) == sent
        if grant.open:
            num_bytes = count * payload.block_bytes if ok else 0
            theirs.events.put(Arrived(job.transfer_id, job.first, count, ok, num_bytes))
        return ok
