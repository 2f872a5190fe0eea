"""The Ray actor around a node process.

One class serves every role: what makes a node a prefill or a decode node is the work that the
coordinator sends it. Ray places and restarts the actor; its methods are for supervision only,
no token and no block passes through them.
"""

from __future__ import annotations

import logging
import os
import threading
import time

import ray

from kvstore.layout import KVLayout
from pd import logs
from pd.node.process import NodeLaunch, NodeProcess

log = logging.getLogger(__name__)

_RETRY_S = 2.0  # between a restart that failed and the next


class NodeActor:
    """Starts serving when it is made, so that a restarted actor does so by itself."""

    def __init__(self, launch: NodeLaunch) -> None:
        logs.start(launch.node_id, launch.config.observe)
        self._process = NodeProcess(launch)
        self._ended = threading.Event()
        self._stopping = False
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._thread = threading.Thread(target=self._serve, name="node", daemon=True)
        self._thread.start()

    def incarnation(self) -> int:
        return self._process.incarnation

    def loaded(self) -> int:
        """Wait until the model is in memory; raises why it cannot be. Returns the pid."""
        self._process.compute.loaded.result()
        return os.getpid()

    def home(self) -> tuple[KVLayout, str]:
        """The shape of its blocks, and the id that Ray has for its host."""
        return self._process.layout(), ray.get_runtime_context().get_node_id()

    def watch(self, timeout_s: float) -> bool:
        """Whether the node has stopped, at once when it has; a caller that waits here notices a
        dead process."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        self._stopping = True
        self._process.stop()
        self._ended.wait(timeout=30)

    def _serve(self) -> None:
        try:
            self._process.run()
        except BaseException:
            loaded = self._process.compute.loaded
            unloaded = loaded.done() and loaded.exception() is not None
            if unloaded and not self._restarted:
                # `loaded` tells the caller; a restart would only fail again.
                log.error("the model could not be loaded", exc_info=True)
            elif not self._stopping:
                log.exception("the node failed and makes room for a new process")
                if unloaded:  # what was there at first may be there again soon
                    time.sleep(_RETRY_S)
                os._exit(1)
        finally:
            self._ended.set()
