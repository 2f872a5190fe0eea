"""Nodes on one host: while one computes, the steps of the others take longer. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from pd.cost.sharing import Sharing

_DEGREES = 32


class SimHost:
    """What runs on a host now: the memory share of each node's step, under the node's name.

    A node whose step begins or ends says so with `runs`, and the others are told, by the call
    that they came with, that they now get on at another pace.
    """

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._shares: dict[str, float] = {}
        self._tell: dict[str, Callable[[], None]] = {}
        self._idled_last = ""

    def join(self, node_id: str, tell: Callable[[], None]) -> None:
        """A node is here, idle; another with its name is gone."""
        self._shares[node_id] = 0.0
        self._tell[node_id] = tell

    def runs(self, node_id: str, share: float) -> None:
        """The node's steps have this memory share from now on; 0 if it idles or is gone. It is
        taken roughly, so that a context that grows by a token is no news to the others."""
        share = math.ceil(share * _DEGREES) / _DEGREES
        if share == self._shares[node_id]:
            return
        if not self._shares[node_id]:
            self._idled_last = node_id
        self._shares[node_id] = share
        for other, tell in self._tell.items():
            if other != node_id and self._shares[other]:
                tell()

    def slowness(self, node_id: str) -> float:
        """How many times as long as alone the node's step takes beside the others' now."""
        others = [share for other, share in self._shares.items() if other != node_id]
        crowded = node_id == self._idled_last and all(others)
        return self._sharing.slowness(self._shares[node_id], others, crowded)
