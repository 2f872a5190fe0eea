"""A cell on Ray: one coordinator, gateways and nodes, placed, supervised, changed as it runs."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from pd.actors import STOP_TIMEOUT_S, actor, ask_to_stop, get, last_line
from pd.config import Config
from pd.errors import PDError
from pd.messages import COORDINATOR, CellStatus
from pd.placement import (
    await_hosts,
    check_bind,
    check_resources,
    check_room,
    connect,
    free_port,
    here,
    pool_homes,
)
from pd.processes import RESTART_S, Basis, Processes
from pd.sockets import is_loopback
from pd.supervisor import CoordinatorActor, CoordinatorLaunch
from pd.types import Role

log = logging.getLogger(__name__)

GATEWAY = "gateway-0"
_READY_POLL_S = 0.1
_WAIT_POLL_S = 1.0

Progress = Callable[[str], None]


def _silent(step: str) -> None:
    pass


class Cluster:
    """A running cell. `url` is where its HTTP front is; `stop` ends everything it started.

    Nodes come and go while it serves: no request fails for it. One change at a time: calls from
    several threads wait for one another.
    """

    def __init__(self, config: Config, url: str, processes: Processes, *, owns_ray: bool) -> None:
        self.config = config
        self.url = url
        self._processes = processes
        self._coordinator = processes.basis.coordinator
        self._owns_ray = owns_ray
        self._changing = threading.RLock()
        self._stopped = threading.Event()
        self._ended = ""  # why there is no cell any more, if that is not because it was stopped
        self._guard = threading.Thread(target=self._guard_coordinator, name="guard", daemon=True)
        self._guard.start()

    @classmethod
    def start(cls, config: Config, progress: Progress = _silent) -> Cluster:
        """Start a cell and wait until it can serve.

        `config.model.model` must be a directory. Raises ConfigError or ModelError for what
        the user can mend, PDError when the cell does not come up in `start_timeout_s`.
        """
        owns_ray = connect(config, progress)
        started: list[Processes] = []
        try:
            return cls._start(config, progress, started, owns_ray=owns_ray)
        except BaseException:
            for processes in started:
                everything = {**processes.all, "coordinator": processes.basis.coordinator}
                # Asked first, they remove the names of what they share.
                ask_to_stop(everything, STOP_TIMEOUT_S)
                for handle in everything.values():
                    ray.kill(handle)
            if owns_ray:
                ray.shutdown()
            raise

    @classmethod
    def _start(
        cls, config: Config, progress: Progress, started: list[Processes], *, owns_ray: bool
    ) -> Cluster:
        cluster = config.cluster
        deadline = time.monotonic() + cluster.start_timeout_s
        cluster_id = secrets.randbits(63) | 1
        # On the loopback interface the random cluster id alone keeps strangers' messages out.
        secret = None if is_loopback(cluster.bind) else secrets.token_hex(32)
        await_hosts(config, progress, deadline)
        check_resources(config)
        control_port = check_bind(cluster.bind)
        port = config.gateway.port or free_port(config.gateway.host, "host")
        progress("starting the coordinator")
        coordinator = actor(CoordinatorActor, cluster_id, COORDINATOR, **here()).remote(
            CoordinatorLaunch(cluster_id, config, control_port, time.time(), secret)
        )
        threads = cluster.threads(os.cpu_count() or 1)
        try:
            peer = get(coordinator.peer.remote(), deadline)
        except BaseException:
            ray.kill(coordinator)
            raise
        processes = Processes(Basis(cluster_id, secret, coordinator, peer, port, threads))
        started.append(processes)
        progress(f"starting {cluster.num_nodes} nodes, {threads} threads each, and the gateway")
        for node_id, role in _node_ids(config):
            processes.start_node(config, node_id, role)
        gateway = processes.start_gateway(config, GATEWAY)
        url = get(gateway.loaded.remote(), deadline)
        for node_id, handle in processes.nodes.items():
            progress(f"loading the model into {node_id}")
            get(handle.loaded.remote(), deadline)
        if config.pool.pool_dram_gib > 0 and config.cache.prefix_cache:
            homes = sorted(pool_homes(processes.homes(deadline)).items())
            pools = [
                processes.start_pool(config, f"pool-{i}", host, layout)
                for i, (host, layout) in enumerate(homes)
            ]
            for pool in pools:
                get(pool.loaded.remote(), deadline)
        progress("waiting for the nodes to join")
        cell = cls(config, url, processes, owns_ray=owns_ray)
        cell._await_ready(deadline)
        return cell

    # -------------------------------------------------------------- views
    @property
    def nodes(self) -> Mapping[str, ActorHandle]:
        """The nodes and pools by id."""
        return self._processes.nodes

    def status(self) -> CellStatus:
        return self._processes.status()

    # -------------------------------------------------------------- change
    def add_node(self, role: Role, progress: Progress = _silent) -> str:
        """Start one more node and wait until it serves; returns its id.

        PDError if Ray has no room for it, or it does not come up; then nothing has changed.
        """
        with self._changing:
            check_room(self.config, role)
            deadline = time.monotonic() + self.config.cluster.start_timeout_s
            node_id = free_id(role, self.nodes)
            progress(f"starting {node_id}")
            handle = self._processes.start_node(self.config, node_id, role)
            try:
                get(handle.loaded.remote(), deadline)
                self._processes.await_joined(node_id, deadline)
            except BaseException:
                self._processes.end(node_id)
                raise
            return node_id

    def remove_node(self, node_id: str, progress: Progress = _silent) -> None:
        """Give a node no more work, let what runs there end for `node_drain_s`, move the rest to
        others, and end its process. PDError if there is none, or the cell cannot do without it."""
        with self._changing:
            if node_id not in self.nodes:
                known = ", ".join(sorted(self.nodes))
                raise PDError(f"there is no node '{node_id}'; those there are: {known}")
            self._processes.drain(node_id, self.config.cluster.node_drain_s, progress)
            progress(f"ending {node_id}")
            self._processes.end(node_id)
            self._processes.await_left(node_id)

    def change_role(self, node_id: str, role: Role, progress: Progress = _silent) -> None:
        """Give a node another role; what it did for the old one goes on elsewhere."""
        with self._changing:
            progress(f"{node_id} becomes a {role} node")
            error = self._processes.ask(self._coordinator.change_role, node_id, role)
            if error:
                raise PDError(error)

    # -------------------------------------------------------------- end
    def wait(self) -> None:
        """Block until `stop` is called from another thread, or the process is interrupted.

        Raises PDError when the coordinator has ended and Ray cannot start it anew.
        """
        while not self._stopped.wait(_WAIT_POLL_S):
            if self._ended:
                raise PDError(f"the cell has ended: {self._ended}")

    def _guard_coordinator(self) -> None:
        """End a coordinator that hangs: it watches all others, and nobody else watches it."""
        timeout_s = self.config.cluster.node_timeout_s
        patient_until_s = 0.0
        while not self._stopped.wait(_WAIT_POLL_S):
            try:
                idle_s = ray.get(self._coordinator.idle_s.remote(), timeout=timeout_s)
            except GetTimeoutError:
                idle_s = timeout_s
            except ActorUnavailableError:  # it is being started anew
                continue
            except RayError as error:
                self._ended = f"Ray cannot start the coordinator anew: {last_line(error)}"
                return
            now_s = time.monotonic()
            if idle_s >= timeout_s and now_s >= patient_until_s and not self._stopped.is_set():
                patient_until_s = now_s + RESTART_S  # the next one has to get that far first
                log.error("ending the coordinator: silent for %.0f s", idle_s)
                ray.kill(self._coordinator, no_restart=False)

    def stop(self) -> None:
        """Let running requests end for a while, then end every process and Ray, if we own it."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._guard.join(self.config.cluster.node_timeout_s + _WAIT_POLL_S)
        processes = self._processes
        # In this order every stream is told before the nodes that serve it go.
        ask_to_stop(processes.gateways, STOP_TIMEOUT_S)
        ask_to_stop({"coordinator": self._coordinator}, STOP_TIMEOUT_S)
        ask_to_stop(processes.nodes, STOP_TIMEOUT_S)
        for handle in (*processes.all.values(), self._coordinator):
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


def free_id(kind: str, taken: Collection[str]) -> str:
    """The first of kind-0, kind-1, ... that nobody has."""
    number = 0
    while f"{kind}-{number}" in taken:
        number += 1
    return f"{kind}-{number}"
