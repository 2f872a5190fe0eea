"""A node's outbox in the simulator: tokens stay runs of tokens."""

from __future__ import annotations

from pd.outbox import Outbox
from pd.types import TokenEvent

Runs = list[tuple[TokenEvent, int]]


class RunOutbox(Outbox):
    """Keeps the tokens of steps that were committed together as (first event, how many), for the
    one gateway there is. No message overtakes them: the simulator takes tokens first."""

    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self._runs: Runs = []
        self.prompts: list[tuple[str, float, float]] = []  # (request, fetch, compute), seconds

    def token(self, gateway: str, event: TokenEvent, count: int = 1) -> None:
        self._runs.append((event, count))

    def prefilled(self, gateway: str, request_id: str, fetch_s: float, compute_s: float) -> None:
        self.prompts.append((request_id, fetch_s, compute_s))

    def drain_tokens(self) -> Runs:
        runs, self._runs = self._runs, []
        return runs
