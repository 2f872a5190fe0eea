"""Which cached block goes when room is needed. Pure: keys in, a victim out.

A policy knows every key it may choose from: `insert` and `remove` keep it true to what is there.

A block is of no use without those before it in its prompt, so a prompt should lose its last
blocks first. Both LRU policies see to that if, once there is room, a prompt's blocks are
touched and inserted last block first: then each is at least as old as the one before it, and
was used no more often.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from kvstore.adaptive_lru import AdaptiveLRU
from pd.errors import ConfigError

K = TypeVar("K", bound=Hashable)


class Eviction(Protocol[K]):
    """Every operation is O(1), amortised, as long as few keys are busy."""

    def insert(self, key: K) -> None:
        """It is there now, and was not before."""
        ...

    def touch(self, key: K) -> None:
        """It was asked for. KeyError if it is not there."""
        ...

    def remove(self, key: K) -> None:
        """It left for a reason of its own. KeyError if it is not there."""
        ...

    def evict(self, busy: Callable[[K], bool]) -> K | None:
        """Take out the one to go; None if all that are there are busy.

        Those that were in the way because they are busy count as fresh from then on.
        """
        ...

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...


class LRU(Generic[K]):
    """The least recently used goes first. Up to 180 bytes a key, its own not counted."""

    def __init__(self, capacity: int) -> None:
        self._keys: OrderedDict[K, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def insert(self, key: K) -> None:
        self._keys[key] = None

    def touch(self, key: K) -> None:
        self._keys.move_to_end(key)

    def remove(self, key: K) -> None:
        del self._keys[key]

    def evict(self, busy: Callable[[K], bool]) -> K | None:
        for _ in range(len(self._keys)):
            key = next(iter(self._keys))
            if not busy(key):
                del self._keys[key]
                return key
            self._keys.move_to_end(key)
        return None


class S3FIFO(Generic[K]):
    """Three FIFO queues: a small one on probation, the main one, and ghosts of the evicted.

    What was not touched while in the small queue leaves, and is remembered for as long as the
    main queue takes to turn over; what comes back in that time goes to the main queue. There a
    key that was touched since it was last at the front goes to the back instead of leaving.

    Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023; with a quarter of
    the room for the small queue instead of a tenth, since a prompt brings many blocks at once.
    Up to 360 bytes for each key of the capacity, half of it for ghosts; keys not counted.
    """

    _SMALL_SHARE = 0.25
    _MAX_USES = 3

    def __init__(self, capacity: int) -> None:
        self._max_ghosts = capacity
        self._small_room = max(1, int(capacity * self._SMALL_SHARE))
        self._small: OrderedDict[K, int] = OrderedDict()  # key to uses
        self._main: OrderedDict[K, int] = OrderedDict()
        self._ghosts: OrderedDict[K, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __contains__(self, key: object) -> bool:
        return key in self._small or key in self._main

    def insert(self, key: K) -> None:
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = 0
        else:
            self._small[key] = 0

    def touch(self, key: K) -> None:
        queue = self._small if key in self._small else self._main
        queue[key] = min(queue[key] + 1, self._MAX_USES)

    def remove(self, key: K) -> None:
        del (self._small if key in self._small else self._main)[key]

    def evict(self, busy: Callable[[K], bool]) -> K | None:
        num_busy = 0  # of one queue, in a row: all of it, when there are as many as it has keys
        busy_queues = 0
        use_small = len(self._small) >= self._small_room or not self._main
        while busy_queues < 2:
            queue = self._small if use_small else self._main
            if num_busy >= len(queue):
                busy_queues += 1
                num_busy = 0
                use_small = not use_small
                continue
            key, uses = queue.popitem(last=False)
            if busy(key):
                queue[key] = uses
                num_busy += 1
                continue
            num_busy = 0
            if not uses:
                if use_small:
                    self._remember(key)
                return key
            if use_small:
                self._main[key] = 0
                if busy_queues == 0:
                    use_small = len(self._small) >= self._small_room
            else:
                queue[key] = uses - 1
        return None

    def _remember(self, key: K) -> None:
        self._ghosts[key] = None
        if len(self._ghosts) > self._max_ghosts:
            self._ghosts.popitem(last=False)


_POLICIES: dict[str, type[Any]] = {"adaptive": AdaptiveLRU, "s3fifo": S3FIFO, "lru": LRU}
DEFAULT_EVICTION = "adaptive"


def make_eviction(name: str, capacity: int) -> Eviction[bytes]:
    """A policy by name for at most `capacity` keys. ConfigError for a name that is none."""
    if name not in _POLICIES:
        raise ConfigError(f"eviction {name!r} is not one of {', '.join(_POLICIES)}")
    policy: Eviction[bytes] = _POLICIES[name](capacity)
    return policy
