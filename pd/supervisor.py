"""The Ray actor around the coordinator. It also watches every other actor through Ray, which
notices a killed process long before its heartbeats are missed."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from pd import logs
from pd.config import Config
from pd.coordinator import Coordinator, CoordinatorLimits
from pd.coordinator_runner import CoordinatorRunner
from pd.errors import ConfigError
from pd.limits import coordinator_limits
from pd.mailbox import Mailbox
from pd.messages import COORDINATOR, CellStatus, ChangeRole, Drain, Scale
from pd.outbox import ANY_PROCESS
from pd.policies.balance import BalanceOptions
from pd.policies.scale import ScaleOptions
from pd.recorder import Recorder
from pd.types import Peer, Role

log = logging.getLogger(__name__)

NAMESPACE = "pd"  # of all actors' names, whoever starts them
_RESTART_POLL_S = 1.0
_ANSWER_S = 30.0
_WATCH_S = 20.0  # after which an actor is asked again whether it has stopped
_EPOCHS_PER_S = 16  # more than processes are welcomed for long; 2**30 are there to be given


@dataclass(frozen=True, slots=True)
class CoordinatorLaunch:
    """What the coordinator process is told when it is started, and started anew.

    `port` is fixed, so that the others find its successors; `started_s` is the time of day when
    the cell was started.
    """

    cluster_id: int
    config: Config
    port: int
    started_s: float
    secret: str | None = None


class CoordinatorActor:
    """Coordinates from the moment it is made, so that a restarted actor does so by itself."""

    def __init__(self, launch: CoordinatorLaunch) -> None:
        logs.start("coordinator", launch.config.observe)
        self._launch = launch
        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._mailbox = _bind(launch, patient=again)
        config = launch.config
        key_space = config.cache.key_space(launch.secret, launch.cluster_id)
        epoch = 1 + int(_EPOCHS_PER_S * max(0.0, time.time() - launch.started_s)) if again else 1
        limits = replace(coordinator_limits(config, key_space), epoch=epoch)
        record = config.cluster.record
        if record is not None and again:  # what led to the end of the one before is kept
            record = f"{record}.{epoch}"
        self._recorder = None if record is None else _recorder(limits, record, again=again)
        self._runner = CoordinatorRunner(
            self._recorder or Coordinator(limits), self._mailbox, self._kill, self._meet
        )
        if again:
            log.warning("started anew, in epoch %d", epoch)
        self._scale: tuple[tuple[ScaleOptions, ...], BalanceOptions] | None = None  # as it was told
        self._handles: dict[str, ActorHandle] = {}
        self._watched: dict[str, int] = {}  # the incarnation that lives behind each handle
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self._thread.start()

    def peer(self) -> Peer:
        """Where the other processes reach the coordinator, and its epoch."""
        return Peer(COORDINATOR, self._mailbox.epoch, {"control": self._mailbox.endpoint})

    def idle_s(self) -> float:
        """How long the coordinator has not got round to anything: it should never be long."""
        return self._runner.idle_s()

    def _meet(self, member_id: str) -> None:
        """Report the deaths of this member's actor, and end it when it hangs."""
        if member_id in self._handles:
            return
        try:
            handle = ray.get_actor(actor_name(self._launch.cluster_id, member_id), NAMESPACE)
        except ValueError:  # its actor is gone for good
            return
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

    def scale(self, options: tuple[ScaleOptions, ...], targets: BalanceOptions) -> None:
        """From now on the number of nodes that are wanted follows the load within these bounds."""
        if self._scale != (options, targets):
            self._runner.ask(lambda call: Scale(call, options, targets)).result(_ANSWER_S)
            self._scale = options, targets

    def status(self) -> CellStatus:
        return self._runner.status

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
                # Asked again and again: a question waits in its actor when who asked is gone.
                while not ray.get(handle.watch.remote(_WATCH_S)):
                    pass
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
        # One that has not said hello to this coordinator may hang, and be unable to say who it is.
        if handle is not None and incarnation in (self._watched.get(member_id), ANY_PROCESS):
            threading.Thread(
                target=ray.kill, args=(handle,), kwargs={"no_restart": False}, daemon=True
            ).start()


def actor_name(cluster_id: int, member_id: str) -> str:
    """The name that Ray knows a process of this cell by."""
    return f"pd-{cluster_id:x}-{member_id}"


def _bind(launch: CoordinatorLaunch, *, patient: bool) -> Mailbox:
    """The mailbox at the coordinator's address; its last process may still have the port."""
    config = launch.config
    while True:
        try:
            return Mailbox(
                COORDINATOR,
                launch.cluster_id,
                bind=f"tcp://{config.cluster.bind}:{launch.port}",
                secret=launch.secret,
                max_message_bytes=config.transfer.max_message_bytes,
            )
        except ConfigError as error:
            if not patient:
                raise
            log.error("the coordinator waits for its port: %s", error)
            time.sleep(_RESTART_POLL_S)


def _recorder(limits: CoordinatorLimits, path: str, *, again: bool) -> Recorder | None:
    """One that writes there. ConfigError if it cannot; `again`, in a process that was started anew,
    goes on without: a full disk must not keep a cell from its coordinator."""
    try:
        return Recorder(limits, Path(path).expanduser())
    except OSError as error:
        why = f"cannot record to cluster.record = {path}: {error.strerror}"
    if not again:
        raise ConfigError(why)
    log.error("%s: what follows is not recorded", why)
    return None
