"""LRU whose clock runs slower for blocks that were used before; how much slower is learned.

Plain LRU is hard to beat on conversations: most blocks are used once more or never, soon. It
falls short where some prefixes are used again and again and a flood of new ones drives them
out. A fixed preference for the used ones helps there and costs elsewhere. So this policy starts
as LRU and moves away from it as far as its own regrets say:

- Keys are in classes by uses: none, 1, 2 to 3, 4 to 7, 8 and more. A key that was evicted is
  remembered as a ghost for a while, and has its uses again when it comes back.
- Of each class the least recently used key is a candidate; the one with the greatest age by
  the weight of its class goes. With all weights 1 this is LRU.
- An eviction is regretted if the key comes back before a quarter of the capacity has been
  evicted after it. A class whose evictions are regretted more often than those of unused keys
  gains weight, one whose are not loses it. Little evidence counts as none.

Weights never fall with uses, and of a prompt's blocks an earlier one was used at least as often
and as recently as a later one: so it is the last that go first, and no block is left behind
that cannot be reached.

Akin to hyperbolic caching (Blankstein et al., USENIX ATC 2017: value is uses by age) and, in
learning from ghosts, to ARC (Megiddo and Modha, FAST 2003).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_NUM_CLASSES = 5
_LOOKS = 4  # at the front of each class, for a key that is not busy
_USES_BITS = 8
_MAX_USES = (1 << _USES_BITS) - 1

_GHOSTS = 4.0  # of the capacity
_TRIAL = 0.25  # how long an eviction can be regretted, in evictions and of the capacity
_LESSON = 0.1  # outcomes of evictions between two changes of the weights, of the capacity
_MIN_LESSON = 100
_DOUBT = 0.1  # outcomes, of the capacity, that a class needs to outweigh the average of all
_MIN_DOUBT = 100
_MEMORY = 0.7  # of the outcomes counted, how much a lesson leaves for the next
_RATE = 0.1  # of learning: the exponent of the ratio by which a weight changes
_MARGIN = 1.1  # by so much regret must be more frequent for a weight to rise
_MAX_WEIGHT = 64.0


class AdaptiveLRU(Generic[K]):
    """Up to 700 bytes for each key of the capacity, 500 of them for ghosts; keys not counted.

    Ghosts are known by their hash: two that collide only teach something wrong.
    """

    def __init__(self, capacity: int) -> None:
        self._classes: list[OrderedDict[K, int]] = [OrderedDict() for _ in range(_NUM_CLASSES)]
        self._uses: dict[K, int] = {}
        self._now = 0  # counts insertions and touches; a class maps its keys to their last one
        self.weights = [1.0] * _NUM_CLASSES

        # Hash of an evicted key to (the number of its eviction, its uses) in one int. Two
        # generations, the older forgotten at once when the younger is full.
        self._ghosts: dict[int, int] = {}
        self._older_ghosts: dict[int, int] = {}
        self._max_ghosts = max(1, int(capacity * _GHOSTS / 2))
        self._evictions = 0
        self._on_trial: deque[int] = deque()  # hashes of the last evicted
        self._trial = max(1, int(capacity * _TRIAL))

        self._lesson = max(_MIN_LESSON, int(capacity * _LESSON))
        self._doubt = _MIN_DOUBT + capacity * _DOUBT
        self._regretted = [0.0] * _NUM_CLASSES
        self._accepted = [0.0] * _NUM_CLASSES
        self._outcomes = 0  # since the last lesson

    def __len__(self) -> int:
        return len(self._uses)

    def __contains__(self, key: object) -> bool:
        return key in self._uses

    def insert(self, key: K) -> None:
        self._now += 1
        uses = self._come_back(hash(key))
        self._uses[key] = uses
        self._classes[_class(uses)][key] = self._now

    def touch(self, key: K) -> None:
        uses = self._uses[key]
        self._now += 1
        del self._classes[_class(uses)][key]
        self._uses[key] = uses = min(uses + 1, _MAX_USES)
        self._classes[_class(uses)][key] = self._now

    def remove(self, key: K) -> None:
        del self._classes[_class(self._uses.pop(key))][key]

    def evict(self, busy: Callable[[K], bool]) -> K | None:
        # A class may have nothing but busy keys: only if no class has an idle one near its
        # front is all of it looked at.
        found = self._oldest(busy, _LOOKS) or self._oldest(busy, len(self))
        if found is None:
            return None
        keys, victim = found
        del keys[victim]
        self._went(hash(victim), self._uses.pop(victim))
        return victim

    def _oldest(
        self, busy: Callable[[K], bool], looks: int
    ) -> tuple[OrderedDict[K, int], K] | None:
        """The class of the key to go, and the key; None if all that were looked at are busy."""
        found, greatest = None, -1.0
        for keys, weight in zip(self._classes, self.weights):
            for _ in range(min(looks, len(keys))):
                key = next(iter(keys))
                if not busy(key):
                    age = (self._now - keys[key]) / weight
                    if age > greatest:
                        found, greatest = (keys, key), age
                    break
                keys[key] = self._now
                keys.move_to_end(key)
        return found

    # ------------------------------------------------------------------ regret
    def _went(self, ghost: int, uses: int) -> None:
        self._evictions += 1
        if len(self._ghosts) >= self._max_ghosts:
            self._older_ghosts, self._ghosts = self._ghosts, {}
        self._older_ghosts.pop(ghost, None)
        self._ghosts[ghost] = self._evictions << _USES_BITS | uses
        self._on_trial.append(ghost)
        if len(self._on_trial) > self._trial:
            acquitted = self._on_trial.popleft()
            value = self._ghosts.get(acquitted) or self._older_ghosts.get(acquitted, 0)
            if value >> _USES_BITS == self._evictions - self._trial:  # and not of a later one
                self._accepted[_class(value & _MAX_USES)] += 1
                self._learn()

    def _come_back(self, ghost: int) -> int:
        """The uses of a key that is new, or was evicted and is asked for again."""
        value = self._ghosts.pop(ghost, None) or self._older_ghosts.pop(ghost, None)
        if value is None:
            return 0
        uses = value & _MAX_USES
        if self._evictions - (value >> _USES_BITS) < self._trial:
            self._regretted[_class(uses)] += 1
            self._learn()
        return min(uses + 1, _MAX_USES)

    def _learn(self) -> None:
        self._outcomes += 1
        if self._outcomes < self._lesson:
            return
        self._outcomes = 0
        regretted, accepted, doubt = self._regretted, self._accepted, self._doubt
        # The 1 keeps ratios finite when nothing was ever regretted.
        average = (sum(regretted) + 1) / (sum(regretted) + sum(accepted) + 1)
        regret = [
            (bad + doubt * average) / (bad + good + doubt) for bad, good in zip(regretted, accepted)
        ]
        weights = self.weights
        for i in range(1, _NUM_CLASSES):
            changed = weights[i] * (regret[i] / (regret[0] * _MARGIN)) ** _RATE
            weights[i] = min(max(changed, weights[i - 1]), _MAX_WEIGHT)
        self._regretted = [count * _MEMORY for count in regretted]
        self._accepted = [count * _MEMORY for count in accepted]


def _class(uses: int) -> int:
    """0 for none, 1 for one, 2 for 2 to 3, 3 for 4 to 7, 4 for 8 and more."""
    return min(uses.bit_length(), _NUM_CLASSES - 1)
