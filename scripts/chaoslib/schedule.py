"""Which fault comes next, from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "pause", "slow", "cut"]

MEMBERS = ("prefill", "decode", "pool", "coordinator", "gateway")
RAY, LINK = "ray", "link"
KINDS: dict[Kind, str] = {
    "kill": "SIGKILL",
    "stop": "SIGSTOP, until somebody ends it",
    "pause": "SIGSTOP, then SIGCONT",
    "slow": "stopped for nine tenths of the time",
    "cut": "nothing passes between the hosts",
}
# Nobody but its host's owner would end a Ray that is stopped for good.
PAIRS: tuple[tuple[Kind, str], ...] = (
    *((kind, target) for target in MEMBERS for kind in ("kill", "stop", "pause", "slow")),
    ("kill", RAY), ("pause", RAY), ("slow", RAY), ("cut", LINK), ("cut", LINK),
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """`seconds` is how long it lasts where it ends by itself; `pick`, in [0, 1), chooses among
    the processes that are `target` at the time."""

    kind: Kind
    target: str
    seconds: float
    pick: float


class Deck:
    """Faults in a random order, as of cards that are all drawn before they are shuffled again: so
    every pair of kind and target has come as often as any other, but for one.

    `timeout_s` is after how much silence a process counts as lost: faults last less and more.
    """

    def __init__(self, seed: int, every_s: tuple[float, float], timeout_s: float) -> None:
        self._rng = random.Random(seed)
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._cards: list[Fault] = []
        self._waits = random.Random(seed + 1)

    def wait_s(self) -> float:
        """From the fault before to the next one."""
        return self._waits.uniform(*self._every_s)

    def draw(self, available: Container[str]) -> Fault | None:
        """The next fault whose target is there now; those passed over stay. None if no target is.

        What comes follows from the seed and from what was available before.
        """
        for turn in range(2):
            for place, card in enumerate(self._cards):
                if card.target in available:
                    return self._cards.pop(place)
            if turn == 0:
                self._cards += self._shuffled()
        return None

    def _shuffled(self) -> list[Fault]:
        rng = self._rng
        cards = []
        for kind, target in rng.sample(PAIRS, len(PAIRS)):
            seconds, pick = 0.0, rng.random()
            if kind in ("pause", "cut"):
                seconds = rng.choice((0.5, self._timeout_s / 2, self._timeout_s + 2.0))
            elif kind == "slow":
                seconds = 2 * self._timeout_s
            cards.append(Fault(kind, target, seconds, pick))
        return cards
