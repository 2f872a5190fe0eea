"""Which holder has which block: the coordinator's index of every prefix cache in the cell.

A block is known by the first 8 bytes of its key as a little-endian int. Two blocks that
collide there only misroute a request: holders look up whole keys.

Made for 10 million blocks and 1,000 holders in one process. What keeps it small and even:

- The table is 512 dicts, chosen by the low 9 bits of a key: none is ever so large that its growth
  is noticed (1 ms at 10 million blocks), and the bits that are left make a smaller int. With
  more of them a lookup would miss the processor's caches more often.
- Equal sets of places are one object, so a block costs an entry of a dict and an int. The
  blocks of a prompt mostly lie in the same places, and that is then seen by identity.
- That object is `bytes`: a dict of ints and bytes is nothing that Python's garbage collector
  looks into, which with 10 million tuples would stop the process for 0.4 s every so often.
- Nothing is kept per holder but a count. A holder that leaves is struck off in O(1); `sweep`
  gives its memory back piecemeal, in one pass over the table however many have left.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pd.messages import BlockEvents
from pd.types import Tier

# A place is a 32-bit int: a holder's slot, and below it a bit for each tier it has the block in.
_TIER_BITS: dict[Tier, int] = {"node": 1, "dram": 2, "disk": 4}
_SLOW = _TIER_BITS["disk"]
_TIERS_WIDTH = 3
_ALL_TIERS = (1 << _TIERS_WIDTH) - 1

Places = bytes  # packed, ascending, each holder once
_NOWHERE: Places = b""

_SHARD_BITS = 9
_NUM_SHARDS = 1 << _SHARD_BITS
_SHARD_MASK = _NUM_SHARDS - 1

# A dict keeps the room of what it lost: when this share of one is left, it is copied.
_WORTH_A_COPY = 0.75

# What may be remembered in order to be shared, in bytes, and what each takes beside its places.
_MAX_SHARED = 16 << 20
_SHARED_COST = 160


class Leading(NamedTuple):
    """The first `blocks` of a prompt, without a hole; `slow` of them only on the disk."""

    blocks: int
    slow: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What holders have of a prompt: every holder of its first block, and how far it gets."""

    leading: dict[str, Leading] = field(default_factory=dict)


@dataclass(slots=True)
class _Holder:
    """One life of a holder, from its `join` or reset to the next or to its `drop`."""

    slot: int
    next_seq: int = 1
    in_sync: bool = True
    num_blocks: int = 0


class PrefixDirectory:
    """Block events in, coverage of a prompt out. Pure: no clock, no I/O.

    `apply` costs O(1) per key, `lookup` O(1) per key up to the first that nobody has,
    `join` and `drop` O(1).
    """

    def __init__(self) -> None:
        self._shards: list[dict[int, Places]] = [{} for _ in range(_NUM_SHARDS)]
        self._holders: dict[str, _Holder] = {}
        self._names: list[str | None] = []  # by slot; None for a slot without a living holder
        self._free_slots: list[int] = []
        self._left: set[int] = set()  # slots left since the pass of `sweep` that is under way began
        self._sweeping: set[int] = set()  # slots left before: no trace of them after this pass
        self._next_shard = 0
        self._shared: dict[Places, Places] = {}
        self._shared_bytes = 0

    def __len__(self) -> int:
        """Blocks in the table, those of holders that left included until they are swept."""
        return sum(map(len, self._shards))

    def num_blocks(self, holder: str) -> int:
        """Blocks that a holder has, in whatever tiers; 0 for one that is not known."""
        found = self._holders.get(holder)
        return found.num_blocks if found else 0

    @property
    def holders(self) -> tuple[str, ...]:
        return tuple(self._holders)

    # ------------------------------------------------------------------ holders
    def join(self, holder: str) -> None:
        """A holder begins a new epoch: it has nothing and its next message is number 1."""
        self.drop(holder)
        if self._free_slots:
            slot = self._free_slots.pop()
            self._names[slot] = holder
        else:
            slot = len(self._names)
            self._names.append(holder)
        self._holders[holder] = _Holder(slot)

    def drop(self, holder: str) -> None:
        """No lookup finds this holder any more. One that is not known is no mistake."""
        found = self._holders.pop(holder, None)
        if found is None:
            return
        self._names[found.slot] = None
        if found.num_blocks:
            self._left.add(found.slot)
        else:
            self._free_slots.append(found.slot)

    def in_sync(self, holder: str) -> bool:
        """Whether no message of a known holder is missing."""
        found = self._holders.get(holder)
        return found is not None and found.in_sync

    # ------------------------------------------------------------------ events
    def apply(self, holder: str, events: BlockEvents) -> bool:
        """Take one message; False when something before it is missing: then ask for a sync.

        After a gap nothing is applied, and the answer stays False, until a reset arrives. A
        message that was seen before changes nothing. What a holder is said to have had, it may
        be told to have again, and the other way round: events are idempotent. ValueError, and
        no change, for keys that are not 8 bytes each or a tier that does not exist.
        """
        found = self._holders.get(holder)
        if found is None:
            return False
        tier = _TIER_BITS.get(events.tier)
        if tier is None:
            raise ValueError(
                f"block events of {holder}: no tier {events.tier!r}, one of {sorted(_TIER_BITS)}"
            )
        removed, stored = _keys(holder, events.removed), _keys(holder, events.stored)
        if events.seq < found.next_seq:
            return found.in_sync
        if events.reset:
            self.join(holder)
            found = self._holders[holder]
        elif not found.in_sync or events.seq > found.next_seq:
            found.in_sync = False
            return False
        found.next_seq = events.seq + 1
        if removed:
            found.num_blocks -= self._change(removed, found.slot, tier, 0)
        if stored:
            found.num_blocks += self._change(stored, found.slot, 0, tier)
        return True

    def _change(self, keys: Sequence[int], slot: int, remove: int, add: int) -> int:
        """Take these tiers from, or give them to, a holder's place of each block.

        Returns how many blocks it now has that it did not have before, or the reverse.
        """
        shards = self._shards
        changes: dict[Places, tuple[Places, int]] = {}  # what became of a set of places here
        last: Places | None = None
        after, counts, count = _NOWHERE, 0, 0
        for key in keys:
            shard = shards[key & _SHARD_MASK]
            rest = key >> _SHARD_BITS
            before = shard.get(rest, _NOWHERE)
            if before is not last:
                last = before
                change = changes.get(before)
                if change is None:
                    change = changes[before] = self._changed(before, slot, remove, add)
                after, counts = change
            count += counts
            if after:
                if after is not before:
                    shard[rest] = after
            elif before:
                del shard[rest]
        return count

    def _changed(self, places: Places, slot: int, remove: int, add: int) -> tuple[Places, int]:
        """The new set of places, and 1 if the slot is in only one of the two."""
        tiers = 0
        others = []
        for place in _unpacked(places):
            if place >> _TIERS_WIDTH == slot:
                tiers = place & _ALL_TIERS
            elif self._names[place >> _TIERS_WIDTH] is not None:
                others.append(place)
        now = tiers & ~remove | add
        if now:
            others.append(slot << _TIERS_WIDTH | now)
            others.sort()
        return self._share(_packed(others)), int(bool(tiers) != bool(now))

    def _share(self, places: Places) -> Places:
        """The one object for these places. Forgetting some now and then only costs sharing."""
        if not places:
            return _NOWHERE
        known = self._shared.get(places)
        if known is not None:
            return known
        self._shared_bytes += _SHARED_COST + len(places)
        if self._shared_bytes > _MAX_SHARED:
            self._shared.clear()
            self._shared_bytes = _SHARED_COST + len(places)
        self._shared[places] = places
        return places

    # ------------------------------------------------------------------ what is asked
    def lookup(self, keys: Sequence[int]) -> Coverage:
        """Who has how many leading blocks of a prompt, `keys` being those of its blocks."""
        shards = self._shards
        slow: dict[int, int] = {}  # by slot, of the holders that have every block so far
        leading: dict[str, Leading] = {}
        places, start, count = _NOWHERE, 0, 0
        for key in keys:
            found = shards[key & _SHARD_MASK].get(key >> _SHARD_BITS, _NOWHERE)
            if found is not places:
                # `places` held for the blocks from start up to count.
                self._extend(slow, places, count - start)
                if count == 0:
                    slow = dict.fromkeys(self._living(found), 0)
                else:
                    self._end(slow, self._living(found), count, leading)
                if not slow:
                    return Coverage(leading)
                places, start = found, count
            elif not found:
                return Coverage(leading)
            count += 1
        self._extend(slow, places, count - start)
        self._end(slow, (), count, leading)
        return Coverage(leading)

    def _living(self, places: Places) -> set[int]:
        names = self._names
        slots = (place >> _TIERS_WIDTH for place in _unpacked(places))
        return {slot for slot in slots if names[slot] is not None}

    @staticmethod
    def _extend(slow: dict[int, int], places: Places, num_blocks: int) -> None:
        for place in _unpacked(places):
            if place & _ALL_TIERS == _SLOW and place >> _TIERS_WIDTH in slow:
                slow[place >> _TIERS_WIDTH] += num_blocks

    def _end(
        self, slow: dict[int, int], still: set[int] | tuple[()], blocks: int,
        leading: dict[str, Leading],
    ) -> None:  # fmt: skip
        """Move the holders that are not in `still` from `slow` to `leading`."""
        parts: dict[int, Leading] = {}  # many have just as much
        for slot in [slot for slot in slow if slot not in still]:
            name, num_slow = self._names[slot], slow.pop(slot)
            assert name is not None
            part = parts.get(num_slow)
            if part is None:
                part = parts[num_slow] = Leading(blocks, num_slow)
            leading[name] = part

    # ------------------------------------------------------------------ memory
    def sweep(self, limit: int) -> int:
        """Look at about `limit` blocks for what belonged to holders that left.

        Returns at how many it looked: 0 when nothing is left to give back. Call it between other
        work; holders that leave meanwhile are found by the pass after the one under way.
        """
        looked = 0
        while looked < limit:
            if not self._sweeping:
                if not self._left:
                    break
                self._sweeping, self._left = self._left, set()
                self._next_shard = 0
            looked += self._sweep_shard(self._next_shard)
            self._next_shard += 1
            if self._next_shard == _NUM_SHARDS:
                self._free_slots.extend(self._sweeping)
                self._sweeping = set()
        return looked

    def _sweep_shard(self, index: int) -> int:
        """Strike everybody off who left. At least 1, so that empty shards end a step, too."""
        shard = self._shards[index]
        num_blocks = len(shard)
        struck: dict[Places, Places] = {}
        for places in set(shard.values()):
            every = _unpacked(places)
            kept = [place for place in every if self._names[place >> _TIERS_WIDTH] is not None]
            if len(kept) < len(every):
                struck[places] = self._share(_packed(kept))
        if struck:
            for rest, places in [item for item in shard.items() if item[1] in struck]:
                after = struck[places]
                if after:
                    shard[rest] = after
                else:
                    del shard[rest]
        if len(shard) < _WORTH_A_COPY * num_blocks:
            self._shards[index] = dict(shard)
        return 1 + num_blocks


def _packed(places: Iterable[int]) -> Places:
    return array("I", places).tobytes()


def _unpacked(places: Places) -> Sequence[int]:
    return array("I", places)


def _keys(holder: str, packed: bytes) -> Sequence[int]:
    if len(packed) % 8:
        raise ValueError(
            f"block events of {holder}: {len(packed)} bytes are not keys of 8 bytes each"
        )
    keys = array("Q", packed)
    if sys.byteorder == "big":
        keys.byteswap()
    return keys
