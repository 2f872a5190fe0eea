"""Which cached block goes when room is needed. Pure: keys in, a victim out.

A policy knows every key it may choose from: `insert` and `remove` keep it true to what is there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from pd.errors import ConfigError

K = TypeVar("K", bound=Hashable)


class Eviction(Protocol[K]):
    """Every operation is O(1), amortised and but for keys that are busy."""

    def insert(self, key: K) -> None:
        """It is there now, and was not before."""
        ...

    def touch(self, key: K) -> None:
        """It was asked for."""
        ...

    def remove(self, key: K) -> None:
        """It left for a reason of its own. KeyError if it is not there."""
        ...

    def evict(self, busy: Callable[[K], bool]) -> K | None:
        """Take out the one to go; None if all that are there are busy."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...


class LRU(Generic[K]):
    """The least recently used goes first."""

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
        for key in self._keys:
            if not busy(key):
                del self._keys[key]
                return key
        return None


_POLICIES = {"lru": LRU}
DEFAULT_EVICTION = "lru"


def make_eviction(name: str, capacity: int) -> Eviction[bytes]:
    """A policy by name for at most `capacity` keys. ConfigError for a name that is none."""
    if name not in _POLICIES:
        raise ConfigError(f"eviction {name!r} is not one of {', '.join(_POLICIES)}")
    return _POLICIES[name](capacity)
