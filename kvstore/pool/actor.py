"""The Ray actor around a pool process. Ray places one on a host and restarts it there."""

from __future__ import annotations

import logging
import os
import threading
import time

import ray

from kvstore.pool.process import PoolLaunch, PoolProcess
from pd import logs
from pd.errors import PDError

log = logging.getLogger(__name__)

_RETRY_S = 1.0  # between a restart that failed and the next


class PoolActor:
    """Serves from the moment it is made, so that a restarted actor does so by itself."""

    def __init__(self, launch: PoolLaunch) -> None:
        logs.start(launch.pool_id, launch.config.observe)
        self._ended = threading.Event()
        self._stopping = False
        self._process: PoolProcess | None = None
        self._error: PDError | None = None
        try:
            self._process = PoolProcess(launch)
        except PDError as error:
            self._error = error
            if ray.get_runtime_context().was_current_actor_reconstructed:
                # What is in the way may be the last of the process before this one.
                log.error("the pool could not start again: %s", error)
                time.sleep(_RETRY_S)
                os._exit(1)
            return
        self._thread = threading.Thread(target=self._serve, name="pool", daemon=True)
        self._thread.start()

    def incarnation(self) -> int:
        return 0 if self._process is None else self._process.incarnation

    def loaded(self) -> int:
        """Its pid, once its tiers are open; raises why they cannot be."""
        if self._error is not None:
            raise self._error
        return os.getpid()

    def watch(self, timeout_s: float) -> bool:
        """Whether the pool has stopped, at once when it has; a caller that waits here notices a
        dead process."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        self._stopping = True
        if self._process is None:
            return
        self._process.stop()
        self._ended.wait(timeout=30)

    def _serve(self) -> None:
        assert self._process is not None
        try:
            self._process.run()
        except BaseException:
            if not self._stopping:
                log.exception("the pool failed and makes room for a new process")
                os._exit(1)
        finally:
            self._ended.set()
