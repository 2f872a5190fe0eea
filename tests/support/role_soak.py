"""Nodes that change roles while requests run: what requests get, and how long a change takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from asking import Asking

from pd.client import Client
from pd.errors import APIStatusError

ROLES = ("prefill", "decode", "mixed")
_SETTLED_S = 60.0
_POLL_S = 0.02


class RoleSoak(Asking):
    """Clients that ask, and `run`, which changes roles meanwhile."""

    def __init__(self, url: str, *, clients: int = 8, seed: int = 0, tokens: int = 160) -> None:
        super().__init__(url, clients=clients, seed=seed, tokens=tokens)
        self._client = Client(url, timeout_s=120.0)
        self.refused = 0
        self.changes: Counter[str] = Counter()
        self.seconds: list[float] = []  # until nothing of the old role was left, by change

    def close(self) -> None:
        self._client.close()
        super().close()

    def run(self, changes: int, progress: Callable[[int], None] = lambda done: None) -> None:
        with self.asking():
            while sum(self.changes.values()) < changes:
                self._change()
                progress(sum(self.changes.values()))

    def _change(self) -> None:
        """One that the cell can do, and its end."""
        nodes = [row for row in self._client.status()["nodes"] if row["role"] != "pool"]
        node = self.rng.choice(nodes)
        role = self.rng.choice([role for role in ROLES if role != node["role"]])
        try:
            begun = time.monotonic()
            self._client.change_role(node["id"], role)
        except APIStatusError as error:
            assert error.status == 409, error
            self.refused += 1  # the cell could not have served without it
            return
        while not self._settled(node["id"], role):
            assert time.monotonic() - begun < _SETTLED_S, f"{node['id']} is not a {role} node yet"
            time.sleep(_POLL_S)
        self.seconds.append(time.monotonic() - begun)
        self.changes[f"{node['role']} to {role}"] += 1

    def _settled(self, node_id: str, role: str) -> bool:
        (row,) = (row for row in self._client.status()["nodes"] if row["id"] == node_id)
        return row["role"] == role and row["state"] == "ready"
