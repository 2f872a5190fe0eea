"""The thread that owns a node's engine: it loads the model and runs one step at a time.

Compute releases the interpreter, so the node's loop goes on granting room, taking blocks and
cancelling while a step runs. The engine is touched by this thread alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from pd.types import BatchPlan, Sampled, StepResult


class StepEngine(Protocol):
    """What the thread needs of `pd.engine.engine.Engine`."""

    def execute(self, plan: BatchPlan) -> StepResult: ...


E = TypeVar("E", bound=StepEngine)


class ComputeThread(Generic[E]):
    """Runs plans handed to it; `on_done` is called from the thread after each."""

    def __init__(self, load: Callable[[], E], on_done: Callable[[], None]) -> None:
        self.loaded: Future[E] = Future()
        self._load = load
        self._on_done = on_done
        self._plans: queue.SimpleQueue[BatchPlan | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Sequence[Sampled] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def submit(self, plan: BatchPlan) -> None:
        self._plans.put(plan)

    def collect(self) -> Sequence[Sampled] | None:
        """What the step in flight drew, or None while it runs. Raises what the step raised."""
        try:
            result = self._results.get_nowait()
        except queue.Empty:
            return None
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """End after the step in flight."""
        self._plans.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            engine = self._load()
        except BaseException as error:
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(engine)
        while (plan := self._plans.get()) is not None:
            try:
                self._results.put(engine.execute(plan).samples)
            except BaseException as error:
                self._results.put(error)
            self._on_done()
