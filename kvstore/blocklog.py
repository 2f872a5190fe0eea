"""What a holder has to tell the coordinator about its blocks, until it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from pd.messages import BlockEvents
from pd.types import Tier

MAX_KEYS = 8192  # of one message: 64 KiB
KEY_BYTES = 8  # of each key's 32


class BlockLog:
    """Changes in, `BlockEvents` out, numbered from 1. One log for each epoch of a holder.

    Report real changes only: `stored` when a tier did not have the block, `removed` when it
    had. Then a change that is undone before it was sent need not be sent at all, and a holder
    that cannot send for a while keeps no more than one entry for each block that it has or
    had when it last could: about 200 bytes each.
    """

    def __init__(self) -> None:
        self._seq = 0
        self._reset = False
        # By tier, in order of report: True for a block stored, False for one removed.
        self._changes: dict[Tier, dict[bytes, bool]] = {}

    def __len__(self) -> int:
        """Changes that wait to be sent."""
        return sum(map(len, self._changes.values()))

    def __bool__(self) -> bool:
        """Whether `drain` has something to send: a reset alone is something."""
        return self._reset or any(self._changes.values())

    def stored(self, key: bytes, tier: Tier) -> None:
        """The block of this key (32 bytes) is now in this tier."""
        self.note((key,), tier, stored=True)

    def removed(self, key: bytes, tier: Tier) -> None:
        """The block of this key (32 bytes) is no longer in this tier."""
        self.note((key,), tier, stored=False)

    def note(self, keys: Sequence[bytes], tier: Tier, *, stored: bool) -> None:
        """All these blocks are now in this tier, or all of them no longer are."""
        changes = self._changes.setdefault(tier, {})
        for key in keys:
            short = key[:KEY_BYTES]
            if len(short) < KEY_BYTES:
                raise ValueError(f"a block's key has 32 bytes, not {len(key)}")
            if changes.setdefault(short, stored) is not stored:
                del changes[short]

    def resync(self, inventory: Iterable[tuple[Tier, bytes]]) -> None:
        """Begin anew: what is sent next makes the coordinator forget, then names everything."""
        self._changes.clear()
        self._reset = True
        for tier, key in inventory:
            self.stored(key, tier)

    def drain(self, limit_keys: int = MAX_KEYS) -> list[BlockEvents]:
        """Messages of at most `limit_keys` changes together, the oldest of each tier first.

        Call again while the log is not empty. ValueError for a limit below 1.
        """
        if limit_keys < 1:
            raise ValueError(f"cannot drain {limit_keys} keys: at least 1")
        messages = []
        for tier, changes in self._changes.items():
            while changes and limit_keys:
                num_keys = min(len(changes), limit_keys, MAX_KEYS)
                messages.append(self._message(tier, changes, num_keys))
                limit_keys -= num_keys
        if self._reset:
            messages.append(self._message("node", {}, 0))
        return messages

    def _message(self, tier: Tier, changes: dict[bytes, bool], num_keys: int) -> BlockEvents:
        told = list(islice(changes.items(), num_keys))
        stored = [short for short, is_stored in told if is_stored]
        removed = [short for short, is_stored in told if not is_stored]
        if num_keys == len(changes):
            changes.clear()
        else:
            for short, _ in told:
                del changes[short]
        self._seq += 1
        reset, self._reset = self._reset, False
        return BlockEvents(self._seq, reset, tier, b"".join(stored), b"".join(removed))
