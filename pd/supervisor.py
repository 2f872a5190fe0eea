"""The Ray actor around the coordinator. It also watches every other actor through Ray, which
notices a killed process long before its heartbeats are missed."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from pd.config import Config
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.coordinator_runner import EPOCH, CoordinatorRunner
from pd.errors import ConfigError
from pd.limits import coordinator_limits
from pd.mailbox import Mailbox
from pd.messages import COORDINATOR, CellStatus, ChangeRole, Drain
from pd.recorder import Recorder
from pd.types import Peer, Role

log = logging.getLogger(__name__)

_RESTART_POLL_S = 1.0
_ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class CoordinatorLaunch:
    """What the coordinator process is told when it is started."""

    cluster_id: int
    config: Config
    secret: str | None = None


class CoordinatorActor:
    """Coordinates from the moment it is made."""

    def __init__(self, launch: CoordinatorLaunch) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s coordinator %(levelname)s %(message)s"
        )
        config, cluster = launch.config, launch.config.cluster
        self._mailbox = Mailbox(
            COORDINATOR,
            launch.cluster_id,
            bind=f"tcp://{cluster.bind}:*",
            secret=launch.secret,
            max_message_bytes=config.transfer.max_message_bytes,
        )
        key_space = config.cache.key_space(launch.secret, launch.cluster_id)
        limits = coordinator_limits(config, key_space)
        self._recorder = None if cluster.record is None else _recorder(limits, cluster.record)
        self._runner = CoordinatorRunner(
            self._recorder or Coordinator(limits), self._mailbox, self._kill
        )
        self._handles: dict[str, ActorHandle] = {}
        self._watched: dict[str, int] = {}  # the incarnation that lives behind each handle
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self._thread.start()

    def peer(self) -> Peer:
        """Where the other processes reach the coordinator."""
        return Peer(COORDINATOR, EPOCH, {"control": self._mailbox.endpoint})

    def watch_member(self, member_id: str, handle: ActorHandle) -> None:
        """Report this actor's deaths, and end it when it hangs."""
        self._handles[member_id] = handle
        threading.Thread(
            target=self._watch, args=(member_id, handle), name=f"watch-{member_id}", daemon=True
        ).start()

    def forget_member(self, member_id: str) -> None:
        """This actor is ended for good: its end is no loss to report as one, nor to wait for."""
        self._handles.pop(member_id, None)

    def drain(self, node_id: str, move_s: float) -> str:
        """No more work for this node; returns why it has to stay, or nothing."""
        return self._runner.ask(lambda call: Drain(call, node_id, move_s)).result(_ANSWER_S)

    def change_role(self, node_id: str, role: Role) -> str:
        """Give a node another role; returns why not, or nothing."""
        return self._runner.ask(lambda call: ChangeRole(call, node_id, role)).result(_ANSWER_S)

    def status(self) -> CellStatus:
        return self._runner.status

    def watch(self) -> None:
        """Return when the coordinator has stopped; a waiting caller notices a dead process."""
        self._ended.wait()

    def stop(self) -> None:
        self._stopping.set()
        self._runner.stop()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            self._runner.run()
        except BaseException:
            log.exception("the coordinator failed")
            os._exit(1)  # a cell whose coordinator only seems to live would never end
        finally:
            if self._recorder is not None:
                self._recorder.close()
            self._mailbox.close(linger_s=0.2)
            self._ended.set()

    def _watch(self, member_id: str, handle: ActorHandle) -> None:
        while not self._stopping.is_set() and self._handles.get(member_id) is handle:
            try:
                incarnation = ray.get(handle.incarnation.remote())
            except RayError:  # dead or restarting: nobody to watch yet
                self._stopping.wait(_RESTART_POLL_S)
                continue
            self._watched[member_id] = incarnation
            try:
                ray.get(handle.watch.remote())
                reason = "has stopped"
            except RayError as error:
                reason = f"was lost: {str(error).splitlines()[0]}"
            if self._watched.get(member_id) == incarnation:
                del self._watched[member_id]
            if not self._stopping.is_set():
                self._runner.process_lost(member_id, incarnation, reason)
                self._stopping.wait(_RESTART_POLL_S)

    def _kill(self, member_id: str, incarnation: int) -> None:
        """End a silent process; Ray starts a new one. Not in the loop's thread: Ray may wait."""
        handle = self._handles.get(member_id)
        if handle is not None and self._watched.get(member_id) == incarnation:
            threading.Thread(
                target=ray.kill, args=(handle,), kwargs={"no_restart": False}, daemon=True
            ).start()


def _recorder(limits: CoordinatorLimits, path: str) -> Recorder:
    try:
        return Recorder(limits, Path(path).expanduser())
    except OSError as error:
        raise ConfigError(f"cannot record to cluster.record = {path}: {error.strerror}") from None
