"""The processes of a running cell: starts them one by one, and ends them without harm."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayError

from kvstore.layout import KVLayout
from kvstore.pool.actor import PoolActor
from kvstore.pool.process import PoolLaunch
from pd.actors import STOP_TIMEOUT_S, actor, ask_to_stop, get, last_line, node_actor
from pd.config import Config
from pd.errors import PDError
from pd.gateway.actor import GatewayActor, GatewayLaunch
from pd.messages import CellStatus
from pd.node.process import NodeLaunch
from pd.placement import here, on_host_of
from pd.supervisor import NAMESPACE, actor_name
from pd.types import Peer, Role

log = logging.getLogger(__name__)

_POLL_S = 0.1
RESTART_S = 30.0  # that a process may take to be started anew, on a busy machine


@dataclass(frozen=True)
class Basis:
    """What all processes of a cell have in common for as long as it lives."""

    cluster_id: int
    secret: str | None
    coordinator: ActorHandle
    peer: Peer  # of the coordinator
    port: int  # of HTTP
    listener: str  # the name of the socket that gateways share
    threads: int  # of a node, where its configuration does not say


class Processes:
    """Nodes, pools and gateways by id. The coordinator watches each once it has said hello."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self.nodes: dict[str, ActorHandle] = {}  # pools included
        self.gateways: dict[str, ActorHandle] = {}
        self.configs: dict[str, Config] = {}  # that each was started with
        self.roles: dict[str, Role] = {}  # that nodes were started with
        self.homes: dict[str, tuple[str, KVLayout]] = {}  # hosts of pools, and what they keep

    @property
    def all(self) -> Mapping[str, ActorHandle]:
        return {**self.gateways, **self.nodes}

    # -------------------------------------------------------------- starting
    def start_node(self, config: Config, node_id: str, role: Role) -> ActorHandle:
        basis = self.basis
        threads = config.cluster.threads_per_node or basis.threads
        launch = NodeLaunch(
            node_id, role, basis.cluster_id, basis.peer, config, threads, basis.secret
        )
        handle = node_actor(config, basis.cluster_id, node_id, role, threads).remote(launch)
        self.roles[node_id] = role
        return self._keep(self.nodes, node_id, handle, config)

    def start_pool(self, config: Config, pool_id: str, host: str, layout: KVLayout) -> ActorHandle:
        """On this host, given by the id that Ray has for it."""
        basis = self.basis
        self.homes[pool_id] = host, layout
        launch = PoolLaunch(
            pool_id, basis.cluster_id, basis.peer, config, layout, basis.secret
        )  # fmt: skip
        options = on_host_of(host)
        handle = actor(PoolActor, basis.cluster_id, pool_id, **options).remote(launch)
        return self._keep(self.nodes, pool_id, handle, config)

    def start_gateway(self, config: Config, gateway_id: str) -> ActorHandle:
        basis = self.basis
        launch = GatewayLaunch(
            gateway_id, basis.cluster_id, basis.peer, config, basis.port, basis.listener,
            basis.secret,
        )  # fmt: skip
        handle = actor(GatewayActor, basis.cluster_id, gateway_id, **here()).remote(launch)
        return self._keep(self.gateways, gateway_id, handle, config)

    def _keep(
        self, kept: dict[str, ActorHandle], member_id: str, handle: ActorHandle, config: Config
    ) -> ActorHandle:
        self.configs[member_id] = config
        kept[member_id] = handle
        return handle

    # -------------------------------------------------------------- ending
    def end(self, member_id: str) -> None:
        """Stop a process for good, whatever it does."""
        handle = self.nodes.pop(member_id, None) or self.gateways.pop(member_id)
        del self.configs[member_id]
        self.roles.pop(member_id, None)
        self.basis.coordinator.forget_member.remote(member_id)
        ask_to_stop({member_id: handle}, STOP_TIMEOUT_S)
        ray.kill(handle)
        self._await_name(member_id)

    def _await_name(self, member_id: str) -> None:
        """Another process may have this name once Ray has given it up."""
        name = actor_name(self.basis.cluster_id, member_id)
        deadline = time.monotonic() + RESTART_S
        while time.monotonic() < deadline:
            try:
                ray.get_actor(name, NAMESPACE)
            except ValueError:
                return
            time.sleep(_POLL_S)

    def restart_coordinator(self, deadline: float) -> None:
        """Ray starts another process of it, which learns from all others what there is."""
        coordinator = self.basis.coordinator
        before = get(coordinator.peer.remote(), deadline)
        ray.kill(coordinator, no_restart=False)
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            try:
                peer = ray.get(coordinator.peer.remote())
            except ActorUnavailableError:
                continue
            if peer.epoch == before.epoch:
                continue
            status = self.status()
            if status.ready and {row["id"] for row in status.nodes} >= set(self.nodes):
                return
        raise PDError("the coordinator did not come back within start_timeout_s")

    # -------------------------------------------------------------- what the cell says
    def status(self) -> CellStatus:
        """As the coordinator sees it, also when that is being started anew just now."""
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                status: CellStatus = ray.get(self.basis.coordinator.status.remote())
                return status
            except ActorUnavailableError as error:
                if time.monotonic() > deadline:
                    raise PDError(f"the coordinator does not come back: {error}") from None
            time.sleep(_POLL_S)

    def row(self, node_id: str) -> Mapping[str, Any] | None:
        return next((row for row in self.status().nodes if row["id"] == node_id), None)

    def await_joined(self, node_id: str, deadline: float) -> None:
        while self.row(node_id) is None:
            if time.monotonic() > deadline:
                raise PDError(f"{node_id} did not join within start_timeout_s")
            time.sleep(_POLL_S)

    def await_left(self, node_id: str) -> None:
        """The coordinator knows that a process has ended: it watches it through Ray."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.row(node_id) is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def await_ready(self, gateway_id: str, deadline: float) -> None:
        """A gateway accepts connections and can serve them."""
        while not get(self.gateways[gateway_id].ready.remote(), deadline):
            if time.monotonic() > deadline:
                raise PDError(f"{gateway_id} did not get ready within start_timeout_s")
            time.sleep(_POLL_S)

    def retire(self, gateway_id: str, limit_s: float) -> None:
        """A gateway leaves what comes to others; return when nothing is there any more."""
        try:
            ray.get(self.gateways[gateway_id].retire.remote(limit_s))
        except RayError as error:
            log.warning("%s ended before it was done: %s", gateway_id, last_line(error))

    def drain(self, node_id: str, move_s: float) -> None:
        """Return when nothing runs on a node any more. PDError if the cell cannot do without it."""
        row = self.row(node_id)
        while row is not None and row["state"] != "drained":
            if row["state"] != "leaving":
                error = self.ask(self.basis.coordinator.drain, node_id, move_s)
                if error:
                    raise PDError(error)
            time.sleep(_POLL_S)
            row = self.row(node_id)

    def ask(self, call: Any, *args: object) -> str:
        """What the coordinator answers: why it does not, or nothing."""
        try:
            error: str = ray.get(call.remote(*args))
        except RayError as failed:
            return f"the coordinator did not answer: {last_line(failed)}"
        return error

    def hosts(self, deadline: float) -> dict[str, KVLayout]:
        """The hosts that have nodes, by Ray's ids, and the shape of the blocks there."""
        calls = [h.home.remote() for id_, h in self.nodes.items() if not is_pool(id_)]
        return dict(get(call, deadline)[::-1] for call in calls)

    def places(self, timeout_s: float) -> dict[str, str]:
        """The ids that Ray has for the hosts of nodes, but for those that do not say: one is being
        started anew."""
        calls = {self.nodes[id_].home.remote(): id_ for id_ in self.roles}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
        found = {}
        for call in done:
            with contextlib.suppress(RayError):
                found[calls[call]] = str(ray.get(call)[1])
        return found


def is_gateway(member_id: str) -> bool:
    return member_id.startswith("gateway-")


def is_pool(member_id: str) -> bool:
    return member_id.startswith("pool-")
