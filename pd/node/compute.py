"""The thread that owns a node's engine: it loads the model and runs one step at a time.

Compute releases the interpreter, so the node's loop goes on granting room, taking blocks and
cancelling while a step runs. The engine is touched by this thread alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pd.types import BatchPlan, Sampled, StepResult


class StepEngine(Protocol):
    """What the thread needs of `pd.engine.engine.Engine`."""

    def execute(self, plan: BatchPlan) -> StepResult: ...


E = TypeVar("E", bound=StepEngine)


@dataclass(frozen=True, slots=True)
class StepDone:
    """The step in flight is over."""

    samples: Sequence[Sampled]


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job is over: call `then` in the loop's thread."""

    then: Callable[[], None]


class ComputeThread(Generic[E]):
    """Runs plans and jobs in the order given; `on_done` is called from the thread after each."""

    def __init__(self, load: Callable[[], E], on_done: Callable[[], None]) -> None:
        self.loaded: Future[E] = Future()
        self._load = load
        self._on_done = on_done
        self._orders: queue.SimpleQueue[Callable[[E], StepDone | JobDone] | None] = (
            queue.SimpleQueue()
        )
        self._results: queue.SimpleQueue[StepDone | JobDone | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def submit(self, plan: BatchPlan) -> None:
        """Run a step; its `StepDone` comes from `poll`."""
        self._orders.put(lambda engine: StepDone(engine.execute(plan).samples))

    def call(self, job: Callable[[E], None], then: Callable[[], None]) -> None:
        """Run something else that needs the engine, between two steps."""

        def order(engine: E) -> JobDone:
            job(engine)
            return JobDone(then)

        self._orders.put(order)

    def poll(self) -> list[StepDone | JobDone]:
        """What is over since the last call, in order. Raises what a step or job raised."""
        done: list[StepDone | JobDone] = []
        while not self._results.empty():
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        return done

    def close(self) -> None:
        """End after what was ordered."""
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        _show_name("compute")
        try:
            engine = self._load()
        except BaseException as error:
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(engine)
        while (order := self._orders.get()) is not None:
            try:
                self._results.put(order(engine))
            except BaseException as error:
                self._results.put(error)
            self._on_done()


def _show_name(name: str) -> None:
    """Name the calling thread for `top -H` and /proc, which Python's own names do not reach."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
