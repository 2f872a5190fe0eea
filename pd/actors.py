"""The Ray actors of a cell: how they are made, asked to stop, and how their errors arrive."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from pd.config import Config
from pd.errors import PDError
from pd.node.actor import NodeActor
from pd.placement import needs_of, place_of
from pd.supervisor import NAMESPACE, actor_name
from pd.types import Role

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0
# Whoever watches an actor occupies a thread of it; who watched and is gone does so for a while.
SUPERVISION_CALLS = 16


def actor(cls: type, cluster_id: int, member_id: str, **options: Any) -> Any:
    """An actor class to start one of; Ray restarts it whenever its process ends."""
    return ray.remote(cls).options(
        name=actor_name(cluster_id, member_id),
        namespace=NAMESPACE,
        num_cpus=options.pop("num_cpus", 0),
        max_concurrency=SUPERVISION_CALLS,
        max_restarts=-1,
        **options,
    )


def node_actor(config: Config, cluster_id: int, node_id: str, role: Role, threads: int) -> Any:
    needs = needs_of(config)
    # Thread pools read these when the libraries are loaded, before any code of ours runs.
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    return actor(
        NodeActor,
        cluster_id,
        node_id,
        num_cpus=needs["CPU"],
        num_gpus=needs["GPU"],
        resources=place_of(role),
        runtime_env={"env_vars": env},
    )


def ask_to_stop(processes: Mapping[str, ActorHandle], timeout_s: float) -> None:
    """Let these processes stop by themselves, all at the same time."""
    calls = {handle.stop.remote(): name for name, handle in processes.items()}
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    for call, name in calls.items():
        try:
            ray.get(call, timeout=0)
        except RayError as error:
            log.warning("%s did not stop by itself: %s", name, str(error).splitlines()[0])


def get(call: Any, deadline: float) -> Any:
    """The result of a call; an error raised on purpose arrives as itself."""
    try:
        return result(call, max(1.0, deadline - time.monotonic()))
    except GetTimeoutError:
        raise PDError("a process did not start within start_timeout_s") from None
    except RayError as error:
        raise PDError(f"a process did not start: {last_line(error)}") from None


def result(call: Any, timeout_s: float | None = None) -> Any:
    """The same, but what Ray has to say about the process is left as it is."""
    try:
        return ray.get(call, timeout=timeout_s)
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, PDError) else PDError(last_line(error)) from None


def last_line(error: RayError) -> str:
    """What was raised; the lines before are a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
