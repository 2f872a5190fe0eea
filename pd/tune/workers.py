"""Tasks on several processes: each has the problem once, and is told what to run."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import TypeVar

from pd.tune.problem import Problem

T = TypeVar("T")
R = TypeVar("R")

_problem: Problem | None = None


def _take(problem: Problem) -> None:
    global _problem
    # Who interrupts the search ends these processes as well, without a word from each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _problem = problem


def _call(work: Callable[[Problem, T], R], task: T) -> R:
    assert _problem is not None
    return work(_problem, task)


class Workers:
    """`jobs` processes, started anew rather than forked; with one, everything is done here."""

    def __init__(self, problem: Problem, jobs: int) -> None:
        self.problem = problem
        self.jobs = max(1, jobs)
        self._pool: ProcessPoolExecutor | None = None
        if self.jobs > 1:
            self._pool = ProcessPoolExecutor(
                self.jobs, multiprocessing.get_context("spawn"), _take, (problem,)
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, work: Callable[[Problem, T], R], tasks: Sequence[T]) -> Iterator[R]:
        """Results as they come, of tasks that are begun in order. `work` is a module's function."""
        if self._pool is None:
            for task in tasks:
                yield work(self.problem, task)
            return
        futures: list[Future[R]] = [self._pool.submit(_call, work, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()

    def all(self, work: Callable[[Problem, T], R], tasks: Sequence[T]) -> list[R]:
        """Results in the order of their tasks."""
        if self._pool is None:
            return [work(self.problem, task) for task in tasks]
        return [future.result() for future in
                [self._pool.submit(_call, work, task) for task in tasks]]  # fmt: skip
