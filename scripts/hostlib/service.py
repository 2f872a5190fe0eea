"""Ray on a host as a service: whenever it ends it is started again, as a service manager would."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable

from hostlib.hosts import Host
from hostlib.processes import kill_all

log = logging.getLogger(__name__)

_POLL_S = 0.5


class RayService:
    """`start` starts Ray on the host, waits until it runs and returns its process.

    What an ended Ray has left on the host is killed before the next one starts: service managers do
    so, with everything that belongs to the service. Else a worker that was stopped when Ray ended,
    and cannot notice, would keep its memory for ever.
    """

    def __init__(self, host: Host, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._host = host
        self._start = start
        self._process = start()
        self._closing = threading.Event()
        self.starts = 0  # after the first
        self._thread = threading.Thread(target=self._run, name="ray-service")
        self._thread.start()

    def close(self) -> None:
        """Start it no more."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            if self._process.poll() is None:
                continue
            kill_all(self._host)
            try:
                self._process = self._start()
                self.starts += 1
            except RuntimeError as error:  # it is tried again
                log.warning("Ray was not started again on %s: %s", self._host.name, error)
