"""When a node or a pool tells the coordinator about itself, and what goes with it. Pure."""

from __future__ import annotations

from kvstore.blocklog import BlockLog
from pd.messages import COORDINATOR, Snapshot
from pd.outbox import Outbox
from pd.types import NodeSnapshot


class Reporter:
    """A snapshot every `heartbeat_s`, and sooner after a change: at most one in `snapshot_s`.

    The block events that wait in `log` go before each. Times in seconds.
    """

    def __init__(
        self, outbox: Outbox, heartbeat_s: float, snapshot_s: float, log: BlockLog | None = None
    ) -> None:
        self._outbox = outbox
        self._heartbeat_s = heartbeat_s
        self._snapshot_s = snapshot_s
        self._log = log
        self._changed = True
        self._next_snapshot = 0.0
        self._next_heartbeat = 0.0

    def changed(self) -> None:
        """Something happened that the next snapshot may show."""
        self._changed = True

    @property
    def has_news(self) -> bool:
        """Something happened that no snapshot has shown yet."""
        return self._changed

    def due(self, now: float) -> bool:
        return now >= self.next

    @property
    def next(self) -> float:
        """When a report is due, if nothing changes until then."""
        if self._changed:
            return min(self._next_heartbeat, self._next_snapshot)
        return self._next_heartbeat

    def report(self, snapshot: NodeSnapshot, now: float) -> None:
        self._next_snapshot = now + self._snapshot_s
        self._next_heartbeat = now + self._heartbeat_s
        if self._log is not None:
            for events in self._log.drain():
                self._outbox.send(COORDINATOR, events)
        # A long log takes several reports, which do not wait for heartbeats.
        self._changed = bool(self._log)
        self._outbox.send(COORDINATOR, Snapshot(snapshot))
