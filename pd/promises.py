"""Blocks that a node is about to have, because it was sent a prompt that has them. Pure.

The directory learns of a block when it has been computed. Until then a second prompt that begins
alike would be sent elsewhere, and the block be computed there, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Promise:
    transfer_id: int
    node_id: str
    keys: Sequence[int]


# The last blocks of a request that has ended may still be on their way to the directory: a report
# that was under way when it ended need not tell of them, the one after that does.
_REPORTS_AFTER_END = 2


class Promises:
    """One promise a node and transfer, until the node reports the last block of it, or has
    reported twice since nobody waits for it any more.

    Keys are chained, so two prompts have a block in common only if they have all before it:
    what they share is found by bisection, and promises by their first key.
    """

    def __init__(self) -> None:
        self._by_first: dict[int, dict[tuple[str, int], _Promise]] = {}
        self._by_last: dict[tuple[str, int], set[int]] = {}  # by node and key: transfers
        self._by_transfer: dict[int, dict[str, _Promise]] = {}
        # By node and transfer that has ended: how many reports its promise has left.
        self._ended: dict[str, dict[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_transfer)

    def __len__(self) -> int:
        return sum(len(promises) for promises in self._by_transfer.values())

    def make(self, transfer_id: int, node_id: str, keys: Sequence[int]) -> None:
        """This node will have the blocks of these keys, of which there is at least one."""
        promise = _Promise(transfer_id, node_id, keys)
        self._by_first.setdefault(keys[0], {})[node_id, transfer_id] = promise
        self._by_last.setdefault((node_id, keys[-1]), set()).add(transfer_id)
        self._by_transfer.setdefault(transfer_id, {})[node_id] = promise

    def stored(self, node_id: str, keys: Iterable[int]) -> None:
        """The node has reported these blocks: the directory has what was promised with them."""
        for key in keys:
            for transfer_id in tuple(self._by_last.get((node_id, key), ())):
                self._end(self._by_transfer[transfer_id][node_id])

    def drop(self, transfer_id: int) -> None:
        """This work never reached the nodes."""
        for promise in tuple(self._by_transfer.get(transfer_id, {}).values()):
            self._end(promise)

    def ended(self, transfer_id: int) -> None:
        """This work has ended, one way or another."""
        for node_id in self._by_transfer.get(transfer_id, ()):
            left = self._ended.setdefault(node_id, {})
            left.setdefault(transfer_id, _REPORTS_AFTER_END)

    def reported(self, node_id: str) -> None:
        """The node has sent a snapshot, and before it what it knew of its blocks."""
        left = self._ended.get(node_id, {})
        for transfer_id in tuple(left):
            left[transfer_id] -= 1
            if not left[transfer_id]:
                self._end(self._by_transfer[transfer_id][node_id])

    def lost(self, node_id: str) -> None:
        """The node is gone, and all that it was to have."""
        found = [p[node_id] for p in self._by_transfer.values() if node_id in p]
        for promise in found:
            self._end(promise)

    def leading(self, keys: Sequence[int]) -> dict[str, int]:
        """How many leading blocks of a prompt each node was promised."""
        longest: dict[str, int] = {}
        num_keys = len(keys)
        if not num_keys:
            return longest
        for promise in self._by_first.get(keys[0], {}).values():
            node_id, theirs = promise.node_id, promise.keys
            known = longest.get(node_id, 1)  # the first block they have in common
            if known < num_keys and known < len(theirs) and theirs[known] == keys[known]:
                known = _common(theirs, keys, known)
            longest[node_id] = known
        return longest

    def _end(self, promise: _Promise) -> None:
        node_id, transfer_id, keys = promise.node_id, promise.transfer_id, promise.keys
        alike = self._by_first[keys[0]]
        del alike[node_id, transfer_id]
        if not alike:
            del self._by_first[keys[0]]
        transfers = self._by_last[node_id, keys[-1]]
        transfers.discard(transfer_id)
        if not transfers:
            del self._by_last[node_id, keys[-1]]
        left = self._ended.get(node_id)
        if left is not None:
            left.pop(transfer_id, None)
            if not left:
                del self._ended[node_id]
        promises = self._by_transfer[transfer_id]
        del promises[node_id]
        if not promises:
            del self._by_transfer[transfer_id]


def _common(a: Sequence[int], b: Sequence[int], known: int) -> int:
    """The length of the common prefix of two chains, of which `known` is a part."""
    low, high, step = known, min(len(a), len(b)), 1
    while low + step <= high and a[low + step - 1] == b[low + step - 1]:
        low, step = low + step, 2 * step
    high = min(high, low + step - 1)
    while low < high:
        middle = (low + high) // 2
        if a[middle] == b[middle]:
            low = middle + 1
        else:
            high = middle
    return low
