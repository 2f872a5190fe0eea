"""Stop strings in a text that arrives in pieces.

A Knuth-Morris-Pratt automaton per stop string, fed one character at a time, so the result
depends on the text alone and never on where it was cut. Of several stop strings the one
that is complete first ends the text; of those complete at the same character, the longest.
"""

from __future__ import annotations

from collections.abc import Sequence


def _failures(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is again a prefix."""
    table = [0] * len(pattern)
    length = 0
    for position in range(1, len(pattern)):
        while length and pattern[position] != pattern[length]:
            length = table[length - 1]
        if pattern[position] == pattern[length]:
            length += 1
        table[position] = length
    return table


class StopMatcher:
    """Passes text on, but keeps back what may still turn out to begin a stop string."""

    __slots__ = ("_stops", "_tables", "_states", "_held", "_include", "matched")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._tables = [_failures(stop) for stop in stops]
        self._states = [0] * len(stops)
        self._held = ""
        self._include = include
        self.matched: str | None = None

    def push(self, piece: str, *, armed: bool = True) -> str:
        """The text that may be shown now. After a match it ends there and `matched` is set.

        `armed` false lets a completed stop string pass (fewer than min_tokens tokens so far).
        """
        if not piece or self.matched is not None:
            return ""
        text = self._held + piece
        start = len(self._held)
        for end, char in enumerate(piece, start + 1):
            hit = ""
            for number, stop in enumerate(self._stops):
                state, table = self._states[number], self._tables[number]
                while state and stop[state] != char:
                    state = table[state - 1]
                if stop[state] == char:
                    state += 1
                if state == len(stop):
                    if armed and len(stop) > len(hit):
                        hit = stop
                    state = table[-1]
                self._states[number] = state
            if hit:
                self.matched = hit
                self._held = ""
                return text[:end] if self._include else text[: end - len(hit)]
        cut = len(text) - max(self._states, default=0)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text kept back, once no more will come."""
        held, self._held = self._held, ""
        return held
