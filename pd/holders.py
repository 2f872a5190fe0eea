"""Which blocks lie where: the coordinator's directory, kept true by its holders' events. Pure."""

from __future__ import annotations

from kvstore.directory import PrefixDirectory
from pd.messages import BlockEvents, SyncBlocks
from pd.outbox import Outbox

_SYNC_AGAIN_S = 2.0  # a holder that was asked to report everything, and did not, is asked again
_SWEPT_BLOCKS = 10_000  # looked at in a tick, for what belonged to holders that left


class Holders:
    """Every node is a holder from when it joins, with nothing, to when it leaves, with all."""

    def __init__(self, outbox: Outbox) -> None:
        self.directory = PrefixDirectory()
        self._outbox = outbox
        self._asked: dict[str, float] = {}  # of whom events are missing: when they were asked

    def join(self, holder: str) -> None:
        """A new process of this name: nothing that an earlier one had is there any more."""
        self.directory.join(holder)
        self._asked.pop(holder, None)

    def leave(self, holder: str) -> None:
        self.directory.drop(holder)
        self._asked.pop(holder, None)

    def on_events(self, holder: str, events: BlockEvents, now: float) -> bool:
        """True if they were taken in; else some before them are missing, and are asked for."""
        try:
            applied = self.directory.apply(holder, events)
        except ValueError:  # events that cannot be: what this holder has is not known
            applied = False
        if applied:
            self._asked.pop(holder, None)
        elif holder not in self._asked:
            self.ask(holder, now)
        return applied

    def tick(self, now: float) -> None:
        for holder, asked in list(self._asked.items()):
            if now - asked >= _SYNC_AGAIN_S:
                self.ask(holder, now)
        self.directory.sweep(_SWEPT_BLOCKS)

    def ask(self, holder: str, now: float) -> None:
        """Have a holder report everything that it has."""
        self._asked[holder] = now
        self._outbox.send(holder, SyncBlocks())
