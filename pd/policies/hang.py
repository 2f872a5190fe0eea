"""When a process that should answer all the time hangs, and is to be ended. Pure."""

from __future__ import annotations


class HangWatch:
    """Of a process that is started anew whenever it ends.

    `timeout_s` is how long it may do nothing; `start_s` how long the next process may take, which
    does not answer before, until it has answered for the first time.
    """

    def __init__(self, timeout_s: float, start_s: float) -> None:
        self._timeout_s = timeout_s
        self._start_s = start_s
        self._patient_until_s = float("-inf")

    def hangs(self, idle_s: float, now_s: float) -> bool:
        """Whether to end it now: it has been idle for so long, or not answered for so long."""
        if idle_s < self._timeout_s:
            self._patient_until_s = float("-inf")  # it has started, and may hang again
            return False
        if now_s < self._patient_until_s:
            return False
        self._patient_until_s = now_s + self._start_s
        return True
