"""A cell on Ray: one coordinator, gateways and nodes, placed, supervised, changed as it runs."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from pd.actors import STOP_TIMEOUT_S, actor, ask_to_stop, get, last_line
from pd.autoscaler import Autoscaler
from pd.changes import Changes
from pd.config import Config
from pd.errors import PDError
from pd.gateway.listener import Listener
from pd.limits import scale_options, target_options
from pd.messages import COORDINATOR, CellStatus
from pd.placement import (
    await_hosts,
    check_bind,
    check_host,
    check_resources,
    connect,
    here,
    pool_homes,
)
from pd.policies.hang import HangWatch
from pd.processes import RESTART_S, Basis, Processes
from pd.rollout import Add, ChangeRole, Remove, Replace, Running, Step
from pd.sockets import is_loopback
from pd.supervisor import CoordinatorActor, CoordinatorLaunch
from pd.types import Role

log = logging.getLogger(__name__)

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

    def __init__(
        self,
        config: Config,
        url: str,
        processes: Processes,
        listener: Listener,
        *,
        owns_ray: bool,
    ) -> None:
        self.config = config
        self.listener = listener
        self.url = url
        self._processes = processes
        self._coordinator = processes.basis.coordinator
        self._owns_ray = owns_ray
        self._gives_listener = False
        self._scales = False  # as the coordinator was told
        self._changes = Changes(processes)
        self.changing = threading.RLock()  # held by whoever changes it, and is not to be disturbed
        self._stopped = threading.Event()
        self._ended = ""  # why there is no cell any more, if that is not because it was stopped
        self._guard = threading.Thread(target=self._guard_coordinator, name="guard", daemon=True)
        self._guard.start()
        self._autoscaler = Autoscaler(self)

    @classmethod
    def start(
        cls, config: Config, progress: Progress = _silent, beside: Cluster | None = None
    ) -> Cluster:
        """Start a cell and wait until it can serve.

        `config.model.model` must be a directory. Raises ConfigError or ModelError for what
        the user can mend, PDError when the cell does not come up in `start_timeout_s`. `beside` is
        a cell whose place it takes, and whose address where that stays the same.
        """
        owns_ray = connect(config, progress)
        started: list[Processes] = []
        listener: Listener | None = None
        inherited = beside is not None and beside.serves_at(config)
        try:
            await_hosts(config, progress, time.monotonic() + config.cluster.start_timeout_s)
            check_resources(config, free=beside is not None)
            check_host(config.gateway.host)
            if inherited and beside is not None:
                listener = beside.listener
            else:
                listener = Listener(config.gateway.host, config.gateway.port)
            return cls._start(
                config, listener, progress, started, owns_ray=owns_ray, others=inherited
            )
        except BaseException:
            if listener is not None and not inherited:
                listener.close()
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
        cls,
        config: Config,
        listener: Listener,
        progress: Progress,
        started: list[Processes],
        *,
        owns_ray: bool,
        others: bool,
    ) -> Cluster:
        """With `others` there are gateways of another cell that serve on this listener."""
        cluster = config.cluster
        deadline = time.monotonic() + cluster.start_timeout_s
        cluster_id = secrets.randbits(63) | 1
        # On the loopback interface the random cluster id alone keeps strangers' messages out.
        secret = None if is_loopback(cluster.bind) else secrets.token_hex(32)
        control_port = check_bind(cluster.bind)
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
        processes = Processes(
            Basis(cluster_id, secret, coordinator, peer, listener.port, listener.name, threads)
        )
        started.append(processes)
        gateways = "the gateway" if cluster.gateways == 1 else f"{cluster.gateways} gateways"
        progress(f"starting {cluster.num_nodes} nodes, {threads} threads each, and {gateways}")
        for node_id, role in _node_ids(config):
            processes.start_node(config, node_id, role)
        # A cell that takes another's place serves nobody before it can.
        early = not others
        if early:
            url = cls._start_gateways(config, processes, deadline)
        for node_id, handle in processes.nodes.items():
            progress(f"loading the model into {node_id}")
            get(handle.loaded.remote(), deadline)
        if config.pool.pool_dram_gib > 0 and config.cache.prefix_cache:
            homes = sorted(pool_homes(processes.hosts(deadline)).items())
            pools = [
                processes.start_pool(config, f"pool-{i}", host, layout)
                for i, (host, layout) in enumerate(homes)
            ]
            for pool in pools:
                get(pool.loaded.remote(), deadline)
        progress("waiting for the nodes to join")
        _await_ready(processes, deadline)
        if not early:
            url = cls._start_gateways(config, processes, deadline)
            for gateway_id in processes.gateways:
                processes.await_ready(gateway_id, deadline)
        return cls(config, url, processes, listener, owns_ray=owns_ray)

    @staticmethod
    def _start_gateways(config: Config, processes: Processes, deadline: float) -> str:
        for i in range(config.cluster.gateways):
            processes.start_gateway(config, f"gateway-{i}")
        urls = [get(gateway.loaded.remote(), deadline) for gateway in processes.gateways.values()]
        url: str = urls[0]
        return url

    # -------------------------------------------------------------- views
    @property
    def nodes(self) -> Mapping[str, ActorHandle]:
        """The nodes and pools by id."""
        return self._processes.nodes

    def status(self) -> CellStatus:
        return self._processes.status()

    def node_roles(self) -> dict[str, Role]:
        """The roles that nodes were started with, also of one that is just being started anew."""
        return dict(self._processes.roles)

    def hosts(self, timeout_s: float) -> dict[str, str]:
        """The ids that Ray has for the hosts of nodes, but for those that do not say."""
        return self._processes.places(timeout_s)

    # -------------------------------------------------------------- change
    def change_role(self, node_id: str, role: Role, progress: Progress = _silent) -> None:
        """Give a node another role; what it did for the old one goes on elsewhere."""
        with self.changing:
            self._changes.change_role(node_id, role, progress)

    def add_node(self, role: Role, progress: Progress = _silent) -> str:
        """Start one more node and wait until it serves; returns its id.

        PDError if Ray has no room for it, or it does not come up; then nothing has changed.
        """
        with self.changing:
            return self._changes.add_node(self.config, role, progress)

    def add_nodes(self, roles: Sequence[Role], progress: Progress = _silent) -> None:
        """Start several at once, for which there is room; PDError if one of them does not come up,
        then the others are there."""
        with self.changing:
            self._changes.add_nodes(self.config, roles, progress)

    def scale(self) -> bool:
        """Have the coordinator say in its status how many nodes the load needs, as the
        configuration wants it now. False where numbers stay as they are."""
        options = scale_options(self.config)
        if options or self._scales:  # a coordinator that was told nothing changes no numbers
            ray.get(self._coordinator.scale.remote(options, target_options(self.config)))
            self._scales = bool(options)
        return self._scales

    def add_gateway(self, progress: Progress = _silent) -> str:
        """Start one more gateway on the same address; returns its id."""
        with self.changing:
            return self._changes.add_gateway(self.config, progress)

    def remove_node(self, member_id: str, progress: Progress = _silent) -> None:
        """End a node, pool or gateway without harm to a request.

        A node gets no more work, what runs there may end for `node_drain_s`, the rest goes on with
        others. A gateway accepts no more, and what it serves may end for `retire_s`. PDError if
        there is none of that name, or the cell cannot do without it.
        """
        with self.changing:
            self._changes.remove(self.config, member_id, progress)

    def replace(self, member_id: str, progress: Progress = _silent) -> str:
        """Put a new process in the place of this one, without harm to a request; returns its id.

        PDError if there is no room for a second and the cell cannot do without the first, or if
        the new one does not come up.
        """
        with self.changing:
            return self._changes.replace(self.config, member_id, progress)

    def serves_at(self, config: Config) -> bool:
        """Whether this is the address that `config` wants."""
        mine, other = self.config.gateway, config.gateway
        return mine.host == other.host and other.port in (mine.port, self.listener.port)

    def members(self) -> dict[str, Running]:
        """What runs: nodes with the roles that they have now, pools and gateways."""
        configs = self._processes.configs
        found = {str(row["id"]): str(row["role"]) for row in self.status().nodes}
        found |= dict.fromkeys(self._processes.gateways, "gateway")
        return {id_: Running(kind, configs[id_]) for id_, kind in found.items() if id_ in configs}

    def apply(self, step: Step, progress: Progress = _silent) -> None:
        """One step of a rollout; PDError if it fails."""
        match step:
            case ChangeRole(node_id, role):
                self.change_role(node_id, role, progress)
            case Add("gateway"):
                self.add_gateway(progress)
            case Add("prefill" | "decode" | "mixed" as role):
                self.add_node(role, progress)
            case Remove(member_id):
                self.remove_node(member_id, progress)
            case Replace(member_id):
                self.replace(member_id, progress)
            case _:
                raise TypeError(f"a cell cannot take the step '{step}' by itself")

    # -------------------------------------------------------------- end
    def give_way(self, other: Cluster) -> None:
        """End as a cell that another takes the place of: what runs here may end first."""
        with self.changing:
            limit_s = self.config.gateway.retire_s
            calls = [handle.retire.remote(limit_s) for handle in self._processes.gateways.values()]
            ray.wait(calls, num_returns=len(calls))
            self._gives_listener = other.listener is self.listener
            self.stop()

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
        watch = HangWatch(timeout_s, RESTART_S)
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
            if watch.hangs(idle_s, time.monotonic()) and not self._stopped.is_set():
                log.error("ending the coordinator: silent for %.0f s", idle_s)
                ray.kill(self._coordinator, no_restart=False)

    def stop(self) -> None:
        """Let running requests end for a while, then end every process and Ray, if we own it."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._autoscaler.stop()
        self._guard.join(self.config.cluster.node_timeout_s + _WAIT_POLL_S)
        processes = self._processes
        if not self._gives_listener:
            self.listener.close()
        # In this order every stream is told before the nodes that serve it go.
        ask_to_stop(processes.gateways, STOP_TIMEOUT_S)
        ask_to_stop({"coordinator": self._coordinator}, STOP_TIMEOUT_S)
        ask_to_stop(processes.nodes, STOP_TIMEOUT_S)
        for handle in (*processes.all.values(), self._coordinator):
            ray.kill(handle)
        self._autoscaler.join(STOP_TIMEOUT_S)  # it would start Ray anew to ask for anything
        if self._owns_ray:
            ray.shutdown()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _await_ready(processes: Processes, deadline: float) -> None:
    want = len(processes.nodes)
    while True:
        status = processes.status()
        if status.ready and len(status.nodes) == want:
            return
        if time.monotonic() > deadline:
            raise PDError(
                f"{len(status.nodes)} of {want} nodes joined within start_timeout_s: "
                f"{status.reason or 'the others are still loading'}"
            )
        time.sleep(_READY_POLL_S)


def _node_ids(config: Config) -> list[tuple[str, Role]]:
    counts = config.cluster.counts
    return [(f"{role}-{i}", role) for role, count in counts.items() for i in range(count)]
