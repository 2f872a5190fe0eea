"""`simulate`: a workload through a cell, to the end of its last request."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pd.errors import PDError
from pd.sim.cell import Note, SimCell
from pd.sim.result import SimResult, report
from pd.sim.spec import CellSpec
from pd.workload.arrival import Arrival, Workload
from pd.workload.outcome import Outcome

STALL_S = 3600.0  # of virtual time without any request arriving or ending


def simulate(
    spec: CellSpec,
    workload: Workload,
    *,
    seed: int = 0,
    on_note: Note | None = None,
    on_progress: Callable[[int], None] | None = None,
    stop: Callable[[Outcome], bool] | None = None,
) -> SimResult:
    """What becomes of every request. The same arguments give the same result, to the last bit.

    `on_note` hears of what happens on the way, `on_progress` how many requests have ended. `stop`
    is asked about each that ends, and ends the run early by saying so.
    PDError where requests neither end nor get anywhere for an hour of virtual time.
    """
    return Run(spec, workload, seed, on_note, on_progress, stop).result()


class Run:
    """One simulation."""

    def __init__(
        self,
        spec: CellSpec,
        workload: Workload,
        seed: int,
        on_note: Note | None = None,
        on_progress: Callable[[int], None] | None = None,
        stop: Callable[[Outcome], bool] | None = None,
    ) -> None:
        self._outcomes: list[Outcome] = []
        self._on_progress = on_progress
        self._stop = stop
        self._moved_s = 0.0
        self.cell = SimCell(
            spec, id_tokens=workload.block_tokens, seed=seed, on_end=self._ended, on_note=on_note
        )
        self._arrivals = iter(workload.arrivals)
        self._left = len(workload)
        self.cell.queue.over = not self._left
        self._expect_next()
        self._watch()

    def result(self) -> SimResult:
        with _rare_collections():
            self.cell.queue.run()
        return report(self.cell, self._outcomes)

    def _expect_next(self) -> None:
        """One arrival is in the queue at a time, however many there are."""
        arrival = next(self._arrivals, None)
        if arrival is not None:
            self.cell.queue.at(arrival.time_s, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        self._moved_s = self.cell.now
        self.cell.gateway.submit(arrival)
        self._expect_next()

    def _ended(self, outcome: Outcome) -> None:
        self._moved_s = self.cell.now
        self._outcomes.append(outcome)
        self._left -= 1
        if self._on_progress is not None:
            self._on_progress(len(self._outcomes))
        if not self._left or (self._stop is not None and self._stop(outcome)):
            self.cell.queue.over = True

    def _watch(self) -> None:
        """Look again when requests may have got nowhere for too long."""
        queue, running = self.cell.queue, self.cell.gateway.running
        if running and queue.now >= self._moved_s + STALL_S:
            waiting = sorted(running)
            raise PDError(
                f"{len(waiting)} simulated requests ({', '.join(waiting[:3])}, ...) got nowhere "
                f"for {STALL_S:g} s; the cell may be too small for them"
            )
        since = self._moved_s if running else queue.now
        queue.at(since + STALL_S, self._watch)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Hardly anything here refers to itself: to look for what does takes time and finds little."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
