"""Progress of something slow: a spinner on a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from types import TracebackType

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn


class Progress:
    """Steps by name, on standard error. Starting one ends the one before.

    Steps are reported from whichever thread makes them. What anybody prints meanwhile, Ray with
    the warnings of its processes for one, goes there too: standard output is for the answer.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._bars: Bars | None = None
        self._aside = redirect_stdout(sys.stderr)
        if self._console.is_terminal:
            self._bars = Bars(
                SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"),
                TimeElapsedColumn(), console=self._console,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        self._aside.__enter__()
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            if error is None:
                self._finish()
            self._bars.stop()
        self._aside.__exit__(kind, error, trace)

    def step(self, description: str) -> None:
        if self._bars is None:
            elapsed = time.monotonic() - self._started
            print(f"==> [{elapsed:5.1f} s] {description}", file=self._console.file, flush=True)
            return
        self._finish()
        self._bars.add_task(description, total=1)

    def _finish(self) -> None:
        assert self._bars is not None
        for task in self._bars.task_ids:
            self._bars.update(task, completed=1)
