"""What a script did on hosts, step by step: told as it happens, kept as figures and as a log."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_POLL_S = 0.25
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Journal:
    """`steps` are figures, `lines` the log; `problems` is empty unless something must not be so."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.problems: list[str] = []
        self._short: dict[str, str] = {}
        self._began = time.monotonic()

    def shorten(self, place: Path, name: str) -> None:
        """Paths below `place` are told by this name from now on; earlier ones count first."""
        self._short[str(place)] = name

    def brief(self, text: str) -> str:
        """Without colours, and without this machine's directories."""
        text = _COLOURS.sub("", text).replace("\r", "")
        for place, name in self._short.items():
            text = text.replace(place, name)
        return text

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {text}"
        self.lines.append(line)
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Figures of one step, to which its length is added."""
        self.say(f"==> {name}")
        step: dict[str, Any] = {"step": name}
        self.steps.append(step)
        began = time.monotonic()
        try:
            yield step
        finally:
            step["seconds"] = time.monotonic() - began
            told = (
                f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                for key, value in step.items()
                if key not in ("command", "step")
            )
            self.say(f"    {name}: {', '.join(told)}")

    def wait_for(self, what: str, condition: Callable[[], bool], limit_s: float) -> float | None:
        """How long it took; a problem, and nothing, if it did not happen in time."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                self.problems.append(f"{what}: not within {limit_s:g} s")
                return None
            time.sleep(_POLL_S)
        return time.monotonic() - began
