"""Starts and removes nodes as the coordinator wants, and asks Ray for hosts to have them on.

How many are wanted is `pd.scaler`'s to say. Here it is compared with the processes that there are,
one that is being started anew included. All that are lacking and that there is room for start
together; nodes go one after the other, each once nothing runs there any more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ray.exceptions import ActorUnavailableError, RayError

from pd.errors import PDError
from pd.placement import ask_for_hosts, owner_host, room_for
from pd.policies.scale import Leaver, first_to_go
from pd.types import Role

if TYPE_CHECKING:
    from pd.cluster import Cluster

log = logging.getLogger(__name__)

_POLL_S = 1.0
_RETRY_S = 30.0  # after a change that failed
_ASK_AGAIN_S = 10.0  # others may have asked Ray for something else
_HOSTS_S = 5.0  # that nodes may take to say where they run

Rows = Mapping[str, Mapping[str, Any]]  # of the cell's status, by id


class Autoscaler:
    """A thread beside a cell, from its making until `stop`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._roles: dict[str, Role] = {}  # that nodes had when they last had one
        self._asked: tuple[Sequence[Role], float] = (), 0.0  # of Ray, and when
        self._said = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autoscaler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no further change; what is asked of Ray is withdrawn then."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait until a change that had begun has ended, or failed with the cell."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = _POLL_S
        while not self._stopping.wait(pause_s):
            pause_s = _POLL_S
            if not self._cluster.changing.acquire(timeout=_POLL_S):
                continue
            try:
                if not self._stopping.is_set():
                    self.look()
            except ActorUnavailableError:  # the coordinator is being started anew
                continue
            except Exception as error:
                if not self._stopping.is_set():
                    bug = not isinstance(error, PDError | RayError)
                    log.warning("the number of nodes was not changed: %s", error, exc_info=bug)
                    pause_s = _RETRY_S
            finally:
                self._cluster.changing.release()
        with contextlib.suppress(RayError):
            self._ask(())

    def look(self) -> None:
        """One change, if one is wanted and there is room for it."""
        cluster = self._cluster
        if not cluster.scale():
            self._ask(())
            return
        status = cluster.status()
        wanted = status.wanted
        rows: Rows = {str(row["id"]): row for row in status.nodes}
        roles = self._roles_now(rows)
        have = Counter(roles.values())
        lacking = [role for role, count in wanted.items() for _ in range(count - have[role])]
        surplus = [role for role, count in wanted.items() if have[role] > count]
        if not lacking:
            self._ask(())
        else:
            room = room_for(cluster.config, lacking)
            if len(room) < len(lacking):
                self._wait_for_hosts({**have, **wanted}, lacking)
            if room:
                cluster.add_nodes(room, self._say)
                return
        if surplus:
            cluster.remove_node(self._first_to_go(surplus, roles, rows), self._say)

    def _roles_now(self, rows: Rows) -> dict[str, Role]:
        """Of every node, one that is being started anew just now included."""
        before = self._roles
        self._roles = {
            node_id: cast(
                Role, rows[node_id]["role"] if node_id in rows else before.get(node_id, role)
            )
            for node_id, role in self._cluster.node_roles().items()
        }
        return self._roles

    def _wait_for_hosts(self, counts: Mapping[Role, int], lacking: Sequence[Role]) -> None:
        config = self._cluster.config
        what = ", ".join(f"{count} {role}" for role, count in Counter(lacking).items())
        if not config.scale.ask_for_hosts:
            self._say(f"no room for more nodes ({what}): waiting for hosts")
            return
        self._say(f"no room for more nodes ({what}): asking Ray for hosts")
        self._ask([role for role, count in counts.items() for _ in range(count)])

    def _ask(self, roles: Sequence[Role]) -> None:
        """Ray keeps all the hosts that it was last asked for, idle ones as well: once there are
        enough nodes it is asked for nothing, for a host where one runs is kept by that."""
        before, at = self._asked
        now = time.monotonic()
        if roles != before or (roles and now - at >= _ASK_AGAIN_S):
            ask_for_hosts(self._cluster.config, roles)
            self._asked = roles, now

    def _first_to_go(self, surplus: Sequence[Role], roles: Mapping[str, Role], rows: Rows) -> str:
        hosts = self._cluster.hosts(_HOSTS_S)
        leavers = [
            Leaver(node_id, hosts.get(node_id, ""), _num_requests(rows.get(node_id)))
            for node_id, role in roles.items()
            if role in surplus
        ]
        return first_to_go(leavers, hosts.values(), owner_host())

    def _say(self, what: str) -> None:
        if what != self._said:
            log.info("%s", what)
            self._said = what


def _num_requests(row: Mapping[str, Any] | None) -> int:
    return 0 if row is None else int(row["num_running"]) + int(row["num_waiting"])
