"""A cell on Ray: one coordinator, one gateway and the nodes, placed, supervised, restarted."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from kvstore.pool.actor import PoolActor
from kvstore.pool.process import PoolLaunch
from pd.config import Config
from pd.errors import PDError
from pd.gateway.actor import GatewayActor, GatewayLaunch
from pd.messages import CellStatus
from pd.node.actor import NodeActor
from pd.node.process import NodeLaunch
from pd.placement import (
    check_bind,
    check_resources,
    connect,
    free_port,
    here,
    needs_of,
    on_host_of,
    place_of,
)
from pd.sockets import is_loopback
from pd.supervisor import CoordinatorActor, CoordinatorLaunch
from pd.types import Peer, Role

log = logging.getLogger(__name__)

GATEWAY = "gateway-0"
_READY_POLL_S = 0.1
_WAIT_POLL_S = 1.0
_STOP_TIMEOUT_S = 30.0
# A call that waits for as long as its actor lives occupies a thread of the actor.
_SUPERVISION_CALLS = 8

Progress = Callable[[str], None]


class Cluster:
    """A running cell. `url` is where its HTTP front is; `stop` ends everything it started."""

    def __init__(
        self,
        config: Config,
        url: str,
        coordinator: ActorHandle,
        gateway: ActorHandle,
        nodes: Mapping[str, ActorHandle],
        *,
        owns_ray: bool,
    ) -> None:
        self.config = config
        self.url = url
        self.nodes = nodes
        self._coordinator = coordinator
        self._gateway = gateway
        self._owns_ray = owns_ray
        self._stopped = threading.Event()
        self._coordinator_ends = coordinator.watch.remote()

    @classmethod
    def start(cls, config: Config, progress: Progress = lambda step: None) -> Cluster:
        """Start a cell and wait until it can serve.

        `config.model.model` must be a directory. Raises ConfigError or ModelError for what
        the user can mend, PDError when the cell does not come up in `start_timeout_s`.
        """
        owns_ray = connect(config, progress)
        started: dict[str, ActorHandle] = {}
        try:
            return cls._start(config, progress, started, owns_ray=owns_ray)
        except BaseException:
            # Asked first, they remove the names of what they share.
            _ask_to_stop(started, _STOP_TIMEOUT_S)
            for handle in started.values():
                ray.kill(handle)
            if owns_ray:
                ray.shutdown()
            raise

    @classmethod
    def _start(
        cls, config: Config, progress: Progress, started: dict[str, ActorHandle], *, owns_ray: bool
    ) -> Cluster:
        cluster = config.cluster
        deadline = time.monotonic() + cluster.start_timeout_s
        cluster_id = secrets.randbits(63) | 1
        # On the loopback interface the random cluster id alone keeps strangers' messages out.
        secret = None if is_loopback(cluster.bind) else secrets.token_hex(32)
        check_resources(config)
        check_bind(cluster.bind)
        progress("starting the coordinator")
        coordinator = _actor(CoordinatorActor, "coordinator", 64, **here()).remote(
            CoordinatorLaunch(cluster_id, config, secret)
        )
        started["coordinator"] = coordinator
        peer = _get(coordinator.peer.remote(), deadline)
        threads = cluster.threads(os.cpu_count() or 1)
        nodes: dict[str, ActorHandle] = {}
        progress(f"starting {cluster.num_nodes} nodes, {threads} threads each, and the gateway")
        for node_id, role in _node_ids(config):
            launch = NodeLaunch(node_id, role, cluster_id, peer, config, threads, secret)
            nodes[node_id] = _node_actor(config, node_id, role, threads).remote(launch)
            started[node_id] = nodes[node_id]
        port = config.gateway.port or free_port(config.gateway.host, "host")
        gateway = _actor(GatewayActor, GATEWAY, _SUPERVISION_CALLS, **here()).remote(
            GatewayLaunch(GATEWAY, cluster_id, peer, config, port, secret)
        )
        started[GATEWAY] = gateway
        for member_id, handle in {**nodes, GATEWAY: gateway}.items():
            coordinator.watch_member.remote(member_id, handle)
        url = _get(gateway.loaded.remote(), deadline)
        for node_id, handle in nodes.items():
            progress(f"loading the model into {node_id}")
            _get(handle.loaded.remote(), deadline)
        pools = cls._start_pools(config, nodes, cluster_id, peer, secret, started, deadline)
        for member_id, handle in pools.items():
            coordinator.watch_member.remote(member_id, handle)
        progress("waiting for the nodes to join")
        cell = cls(config, url, coordinator, gateway, {**nodes, **pools}, owns_ray=owns_ray)
        cell._await_ready(deadline)
        return cell

    @staticmethod
    def _start_pools(
        config: Config,
        nodes: Mapping[str, ActorHandle],
        cluster_id: int,
        coordinator: Peer,
        secret: str | None,
        started: dict[str, ActorHandle],
        deadline: float,
    ) -> dict[str, ActorHandle]:
        """A pool on every host that has nodes, for blocks of the shape they have."""
        pools: dict[str, ActorHandle] = {}
        if config.pool.pool_dram_gib == 0 or not config.cache.prefix_cache:
            return pools
        homes = dict(_get(node.home.remote(), deadline)[::-1] for node in nodes.values())
        for i, (host, layout) in enumerate(sorted(homes.items())):
            pool_id = f"pool-{i}"
            launch = PoolLaunch(pool_id, cluster_id, coordinator, config, layout, secret)
            pools[pool_id] = _actor(
                PoolActor, pool_id, _SUPERVISION_CALLS, **on_host_of(host)
            ).remote(launch)
            started[pool_id] = pools[pool_id]
        for handle in pools.values():
            _get(handle.loaded.remote(), deadline)
        return pools

    def status(self) -> CellStatus:
        status: CellStatus = ray.get(self._coordinator.status.remote())
        return status

    def wait(self) -> None:
        """Block until `stop` is called from another thread, or the process is interrupted.

        Raises PDError when the coordinator ends: nothing new can be admitted without it.
        """
        while not self._stopped.is_set():
            ended, _ = ray.wait([self._coordinator_ends], timeout=_WAIT_POLL_S)
            if ended and not self._stopped.is_set():
                raise PDError("the coordinator has died, and the cell with it: start it again")

    def stop(self) -> None:
        """Let running requests end for a while, then end every process and Ray, if we own it."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        # In this order every stream is told before the nodes that serve it go.
        _ask_to_stop({GATEWAY: self._gateway}, _STOP_TIMEOUT_S)
        _ask_to_stop({"coordinator": self._coordinator}, _STOP_TIMEOUT_S)
        _ask_to_stop(self.nodes, _STOP_TIMEOUT_S)
        for handle in (self._gateway, self._coordinator, *self.nodes.values()):
            ray.kill(handle)
        if self._owns_ray:
            ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _await_ready(self, deadline: float) -> None:
        want = len(self.nodes)
        while True:
            status = self.status()
            if status.ready and len(status.nodes) == want:
                return
            if time.monotonic() > deadline:
                raise PDError(
                    f"{len(status.nodes)} of {want} nodes joined within start_timeout_s: "
                    f"{status.reason or 'the others are still loading'}"
                )
            time.sleep(_READY_POLL_S)


def _node_ids(config: Config) -> list[tuple[str, Role]]:
    counts: list[tuple[Role, int]] = [
        ("prefill", config.cluster.prefill),
        ("decode", config.cluster.decode),
        ("mixed", config.cluster.mixed),
    ]
    return [(f"{role}-{i}", role) for role, count in counts for i in range(count)]


def _actor(cls: type, name: str, max_concurrency: int, **options: Any) -> Any:
    return ray.remote(cls).options(
        name=f"pd-{name}-{secrets.token_hex(4)}",
        num_cpus=options.pop("num_cpus", 0),
        max_concurrency=max_concurrency,
        max_restarts=-1 if cls is not CoordinatorActor else 0,
        **options,
    )


def _node_actor(config: Config, node_id: str, role: Role, threads: int) -> Any:
    needs = needs_of(config)
    # Thread pools read these when the libraries are loaded, before any code of ours runs.
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    return _actor(
        NodeActor,
        node_id,
        _SUPERVISION_CALLS,
        num_cpus=needs["CPU"],
        num_gpus=needs["GPU"],
        resources=place_of(role),
        runtime_env={"env_vars": env},
    )


def _ask_to_stop(processes: Mapping[str, ActorHandle], timeout_s: float) -> None:
    """Let these processes stop by themselves, all at the same time."""
    calls = {handle.stop.remote(): name for name, handle in processes.items()}
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    for call, name in calls.items():
        try:
            ray.get(call, timeout=0)
        except RayError as error:
            log.warning("%s did not stop by itself: %s", name, str(error).splitlines()[0])


def _get(call: Any, deadline: float) -> Any:
    """The result of a call; an error raised on purpose arrives as itself."""
    try:
        return ray.get(call, timeout=max(1.0, deadline - time.monotonic()))
    except GetTimeoutError:
        raise PDError("a process did not start within start_timeout_s") from None
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, PDError) else PDError(_last_line(error)) from None
    except RayError as error:
        raise PDError(f"a process did not start: {_last_line(error)}") from None


def _last_line(error: RayError) -> str:
    """What was raised; the lines before are a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
