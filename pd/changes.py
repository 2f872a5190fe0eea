"""Changes of a running cell that cost no request: processes that come, go and take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pd.actors import get
from pd.config import Config
from pd.errors import PDError
from pd.messages import COORDINATOR
from pd.placement import check_room
from pd.processes import Processes, is_gateway, is_pool
from pd.rollout import serves
from pd.types import Role

Progress = Callable[[str], None]


class Changes:
    """Each method is one whole change; the caller lets no two of them overlap."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._coordinator = processes.basis.coordinator

    def change_role(self, node_id: str, role: Role, progress: Progress) -> None:
        """What the node did for its old role goes on elsewhere."""
        progress(f"{node_id} becomes a {role} node")
        error = self._processes.ask(self._coordinator.change_role, node_id, role)
        if error:
            raise PDError(error)

    # -------------------------------------------------------------- coming
    def add_node(self, config: Config, role: Role, progress: Progress, node_id: str = "") -> str:
        """Start one more node and wait until it serves; returns its id.

        PDError if Ray has no room for it, or it does not come up; then nothing has changed.
        """
        check_room(config, role)
        node_id = node_id or free_id(role, self._processes.nodes)
        self._start_nodes(config, {node_id: role}, progress)
        return node_id

    def add_nodes(self, config: Config, roles: Sequence[Role], progress: Progress) -> None:
        """Start a node for each of these roles, all at once, and wait until they serve.

        PDError if one of them does not come up; the others are there. That there is room for all
        is the caller's to know.
        """
        ids: dict[str, Role] = {}
        for role in roles:
            ids[free_id(role, {*self._processes.nodes, *ids})] = role
        self._start_nodes(config, ids, progress)

    def _start_nodes(self, config: Config, ids: Mapping[str, Role], progress: Progress) -> None:
        processes = self._processes
        progress(f"starting {', '.join(ids)}")
        deadline = time.monotonic() + config.cluster.start_timeout_s
        started = [(id_, processes.start_node(config, id_, role)) for id_, role in ids.items()]
        failed: list[PDError] = []
        for node_id, handle in started:
            try:
                self._await(node_id, handle, processes.await_joined, deadline)
            except PDError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def add_gateway(self, config: Config, progress: Progress) -> str:
        processes = self._processes
        gateway_id = free_id("gateway", processes.gateways)
        progress(f"starting {gateway_id}")
        deadline = time.monotonic() + config.cluster.start_timeout_s
        handle = processes.start_gateway(config, gateway_id)
        self._await(gateway_id, handle, processes.await_ready, deadline)
        return gateway_id

    def _await(
        self,
        member_id: str,
        handle: Any,
        until: Callable[[str, float], None],
        deadline: float,
    ) -> None:
        """Return when a new process has loaded, and `until` has returned; else it is ended."""
        try:
            get(handle.loaded.remote(), deadline)
            until(member_id, deadline)
        except BaseException:
            self._processes.end(member_id)
            raise

    # -------------------------------------------------------------- going
    def remove(self, config: Config, member_id: str, progress: Progress) -> None:
        """End a process once nothing runs there any more. PDError if there is none of that name,
        or the cell cannot do without it."""
        processes = self._processes
        if is_gateway(member_id):
            if set(processes.gateways) == {member_id}:
                raise PDError(f"{member_id} has to stay: it is the only gateway")
            progress(f"{member_id} ends what it has, and takes nothing new")
            processes.retire(member_id, config.gateway.retire_s)
        else:
            if member_id not in processes.nodes:
                known = ", ".join(sorted(processes.all))
                raise PDError(f"there is no process '{member_id}'; those there are: {known}")
            progress(f"draining {member_id}")
            processes.drain(member_id, config.cluster.node_drain_s)
        progress(f"ending {member_id}")
        processes.end(member_id)
        processes.await_left(member_id)

    # -------------------------------------------------------------- taking turns
    def replace(self, config: Config, member_id: str, progress: Progress) -> str:
        """Put a new process, of this configuration, in the place of this one; returns its id.

        Where Ray has room the new one serves before the old one goes. Else the old one goes first
        and others do its work meanwhile; the only node of its role has another become a mixed one
        for so long. The coordinator is started anew as it was. PDError if the new one does not
        come up: then the old one is there, or one like it.
        """
        if member_id == COORDINATOR:
            progress("starting the coordinator anew")
            deadline = time.monotonic() + config.cluster.start_timeout_s
            self._processes.restart_coordinator(deadline)
            return member_id
        if is_gateway(member_id):
            new = self.add_gateway(config, progress)
            self.remove(config, member_id, progress)
            return new
        if is_pool(member_id):
            return self._replace_pool(config, member_id, progress)
        row = self._processes.row(member_id)
        if row is None:
            known = ", ".join(sorted(self._processes.all))
            raise PDError(f"there is no process '{member_id}' in the cell; known: {known}")
        role: Role = row["role"]
        try:
            check_room(config, role)
        except PDError as no_room:
            return self._replace_in_turn(config, member_id, role, str(no_room), progress)
        new = self.add_node(config, role, progress)
        self.remove(config, member_id, progress)
        return new

    def _replace_in_turn(
        self, config: Config, node_id: str, role: Role, no_room: str, progress: Progress
    ) -> str:
        processes = self._processes
        old = processes.configs[node_id]
        helper = self._helper(node_id, role, no_room)
        if helper is not None:
            self.change_role(helper[0], "mixed", progress)
        try:
            self.remove(old, node_id, progress)
            try:
                self.add_node(config, role, progress, node_id)
            except PDError:
                self.add_node(old, role, progress, node_id)
                raise
        finally:
            if helper is not None:
                self.change_role(*helper, progress)
        return node_id

    def _helper(self, node_id: str, role: Role, no_room: str) -> tuple[str, Role] | None:
        """A node that has to be mixed for the cell to serve without this one, and its role."""
        rows: Sequence[Mapping[str, Any]] = self._processes.status().nodes
        others = [row for row in rows if row["role"] != "pool" and row["id"] != node_id]
        if serves({row["role"] for row in others}):
            return None
        if not others:
            raise PDError(f"{node_id} is the only node, and there is {no_room}")
        return others[0]["id"], others[0]["role"]

    def _replace_pool(self, config: Config, pool_id: str, progress: Progress) -> str:
        """On its host and under its name: two of them could not have one disk directory. Blocks in
        its memory are lost; requests compute them again, or have them from nodes."""
        processes = self._processes
        host, layout = processes.homes[pool_id]
        old = processes.configs[pool_id]
        self.remove(old, pool_id, progress)
        progress(f"starting {pool_id}")
        try:
            self._start_pool(config, pool_id)
        except PDError:
            processes.homes[pool_id] = host, layout
            self._start_pool(old, pool_id)
            raise
        return pool_id

    def _start_pool(self, config: Config, pool_id: str) -> None:
        processes = self._processes
        deadline = time.monotonic() + config.cluster.start_timeout_s
        handle = processes.start_pool(config, pool_id, *processes.homes[pool_id])
        self._await(pool_id, handle, processes.await_joined, deadline)


def free_id(kind: str, taken: Collection[str]) -> str:
    """The first of kind-0, kind-1, ... that nobody has."""
    number = 0
    while f"{kind}-{number}" in taken:
        number += 1
    return f"{kind}-{number}"
