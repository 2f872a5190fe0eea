"""Cells that outlive the command which started them: each is owned by a detached Ray actor.

`deploy` and `teardown` are what `pd deploy` and `pd teardown` do.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from pd import logs, rollout
from pd.actors import last_line, result
from pd.cluster import Cluster
from pd.config import Config
from pd.errors import PDError
from pd.placement import here
from pd.supervisor import NAMESPACE

log = logging.getLogger(__name__)

_POLL_S = 0.25
_CONCURRENCY = 16

Progress = Callable[[str], None]


class CellActor:
    """Starts one cell, changes it, ends it. Calls that change it are refused while one runs."""

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._busy = threading.Lock()
        self._steps: list[str] = []

    def start(self, config: Config) -> str:
        """Start the cell; returns its URL."""
        with self._change():
            logs.start("cell", config.observe)
            self._cluster = Cluster.start(config, self._progress)
            return self._cluster.url

    def url(self) -> str:
        """Empty while it starts."""
        return "" if self._cluster is None else self._cluster.url

    def plan(self, config: Config, *, roll: bool) -> tuple[list[str], list[str]]:
        """What differs, and the steps to it, in words."""
        cluster = self._running()
        found = rollout.differences(cluster.config, config)
        steps = rollout.plan(cluster.config, config, cluster.members(), roll=roll)
        return [each.text for each in found], rollout.describe(steps)

    def change(self, config: Config, *, roll: bool) -> str:
        """Become what `config` says, step by step; returns the URL. PDError names the step that
        failed; those before it stay done."""
        with self._change():
            cluster = self._running()
            steps = rollout.plan(cluster.config, config, cluster.members(), roll=roll)
            for step in steps:
                try:
                    self._apply(step, config)
                except PDError as error:
                    raise PDError(
                        f"'{step}' failed: {error}; what came before it stays done"
                    ) from None
            cluster.config = config
            return self._running().url

    def progress(self, since: int) -> list[str]:
        """The steps that were taken after the first `since`."""
        return self._steps[since:]

    def stop(self) -> None:
        """Let requests end for a while, then end every process of the cell."""
        if self._cluster is not None:
            self._cluster.stop()

    def _running(self) -> Cluster:
        if self._cluster is None:
            raise PDError("the cell is still starting: wait, or end it with 'pd teardown'")
        return self._cluster

    def _apply(self, step: rollout.Step, config: Config) -> None:
        cluster = self._running()
        if isinstance(step, rollout.Swap):
            self._progress("starting a second cell")
            self._cluster = Cluster.start(config, self._progress, beside=cluster)
            self._progress("letting the first cell end what it has")
            cluster.give_way(self._cluster)
        else:
            cluster.config = config
            cluster.apply(step, self._progress)

    @contextlib.contextmanager
    def _change(self) -> Any:
        if not self._busy.acquire(blocking=False):
            raise PDError("the cell is being changed by another command: wait until it is done")
        try:
            yield
        finally:
            self._busy.release()

    def _progress(self, step: str) -> None:
        log.info("%s", step)
        self._steps.append(step)


# ------------------------------------------------------------------ what the commands do
def deploy(
    config: Config, name: str, progress: Progress, *, dry_run: bool = False, roll: bool = False
) -> str:
    """Start the cell of this name in a Ray cluster that was joined, or change the one that runs;
    returns its URL. With `roll` every process that stays is replaced.

    An interrupted call leaves what it began going on. With `dry_run` only says what would be done,
    and returns nothing if there is no cell yet.
    """
    cell = find(name)
    if cell is None:
        if dry_run:
            progress(f"would start cell '{name}': there is none by that name")
            return ""
        return _start(config, name, progress)
    changes, steps = _call(cell.plan.remote(config, roll=roll))
    for line in changes:
        progress(f"changes {line}")
    for line in steps:
        progress(f"plan {line}")
    if dry_run or (not changes and not steps):
        progress("nothing was done" if dry_run else "nothing to do")
        url: str = _call(cell.url.remote())
        return url
    return _follow(cell, cell.change.remote(config, roll=roll), progress)


def teardown(name: str, progress: Progress) -> None:
    """End the cell of this name. PDError if there is none."""
    cell = find(name)
    if cell is None:
        raise PDError(f"no cell '{name}' runs in this Ray cluster: nothing to end")
    progress(f"ending cell '{name}'")
    with contextlib.suppress(RayActorError):
        _call(cell.stop.remote())
    ray.kill(cell)


def find(name: str) -> ActorHandle | None:
    """The actor that owns the cell of this name."""
    try:
        return ray.get_actor(f"cell-{name}", namespace=NAMESPACE)
    except ValueError:
        return None


def _start(config: Config, name: str, progress: Progress) -> str:
    options: dict[str, Any] = {
        "name": f"cell-{name}", "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0,
        "max_concurrency": _CONCURRENCY,
    }  # fmt: skip
    try:
        cell: Any = ray.remote(CellActor).options(**options, **here()).remote()
    except ValueError:
        raise PDError(f"cell '{name}' has just been started by another command") from None
    try:
        return _follow(cell, cell.start.remote(config), progress)
    except Exception:
        ray.kill(cell)
        raise


def _follow(cell: ActorHandle, call: Any, progress: Progress) -> str:
    """Show progress until a call returns the URL."""
    seen = len(_call(cell.progress.remote(0)))
    while True:
        done, _ = ray.wait([call], timeout=_POLL_S)
        steps = [] if done and _died(call) else _call(cell.progress.remote(seen))
        for step in steps:
            progress(step)
        seen += len(steps)
        if done:
            url: str = _call(call)
            return url


def _died(call: Any) -> bool:
    try:
        ray.get(call)
    except RayActorError:
        return True
    except RayError:
        return False
    return False


def _call(call: Any) -> Any:
    try:
        return result(call)
    except RayActorError as error:
        raise PDError(f"the process that owns the cell has ended: {last_line(error)}") from None
