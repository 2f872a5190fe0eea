"""The Ray actor around a gateway: an event loop in a thread, and calls for supervision."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

import ray
import uvloop

from pd import logs
from pd.config import Config
from pd.gateway.continuity import LinkOptions
from pd.gateway.limits import Limits
from pd.gateway.listener import take
from pd.gateway.server import GatewayOptions, GatewayServer
from pd.gateway.tracing import TraceOptions
from pd.mailbox import AsyncMailbox
from pd.types import Peer

log = logging.getLogger(__name__)

_JOIN_S = 5.0  # how long a new gateway keeps clients waiting for what the cell says
_RETRY_S = 2.0  # between a restart that failed and the next


@dataclass(frozen=True, slots=True)
class GatewayLaunch:
    """What a gateway process is told when it is started. `listener` is the name of the socket
    that it serves on, of which `port` is the port."""

    gateway_id: str
    cluster_id: int
    coordinator: Peer
    config: Config
    port: int
    listener: str
    secret: str | None = None


class GatewayActor:
    """Serves from the moment it is made, so that a restarted actor does so by itself."""

    def __init__(self, launch: GatewayLaunch) -> None:
        logs.start(launch.gateway_id, launch.config.observe)
        self._started: Future[GatewayServer] = Future()
        self._ended = threading.Event()
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(launch,), name="gateway", daemon=True
        )
        self._thread.start()

    def loaded(self) -> str:
        """Wait until HTTP is served; raises why it cannot be. Returns the URL."""
        return self._started.result().url

    def incarnation(self) -> int:
        return self._started.result().link.membership.incarnation

    def watch(self, timeout_s: float) -> bool:
        """Whether the gateway has stopped, at once when it has; a caller that waits here notices a
        dead process."""
        return self._ended.wait(timeout_s)

    def ready(self) -> bool:
        """Whether it accepts connections and the cell serves."""
        return self._started.result().ready

    def retire(self, limit_s: float) -> None:
        """Leave to other gateways what comes; return when nothing is here any more."""
        server = self._started.result()
        asyncio.run_coroutine_threadsafe(server.retire(limit_s), self._loop).result()
        self._ended.wait(timeout=10)

    def stop(self) -> None:
        """Let running requests end for a while, then end the rest with an error event."""
        if self._ended.is_set():
            return
        server = self._started.result()
        asyncio.run_coroutine_threadsafe(server.shutdown(), self._loop).result(
            timeout=server.options.drain_s + 30
        )
        self._ended.wait(timeout=10)

    def _run(self, launch: GatewayLaunch) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(_serve(launch, self._started))
        except BaseException as error:
            if not self._started.done() and not self._restarted:
                self._started.set_exception(error)
                return
            log.exception("the gateway failed and makes room for a new process")
            if not self._started.done():  # its port may still be somebody else's
                time.sleep(_RETRY_S)
            os._exit(1)
        finally:
            self._ended.set()


# Not a method: one coroutine in an actor's class, and Ray runs all its methods in one event loop,
# where `watch` would keep `stop` from ever being called.
async def _serve(launch: GatewayLaunch, started: Future[GatewayServer]) -> None:
    config = launch.config
    mailbox = AsyncMailbox(
        launch.gateway_id,
        launch.cluster_id,
        bind=f"tcp://{config.cluster.bind}:*",
        secret=launch.secret,
        max_message_bytes=config.transfer.max_message_bytes,
    )
    listening = take(launch.listener)
    server = GatewayServer(
        gateway_options(launch), mailbox, launch.coordinator, listening=listening
    )
    started.set_result(server)
    await server.serve()


def gateway_options(launch: GatewayLaunch) -> GatewayOptions:
    """The gateway's part of the configuration."""
    config, gateway = launch.config, launch.config.gateway
    return GatewayOptions(
        model_dir=config.model.model,
        model_name=gateway.served_model_name,
        gateway_id=launch.gateway_id,
        host=gateway.host,
        port=launch.port,
        api_keys=gateway.tenants(),
        classes=config.slo.classes(),
        limits=Limits(
            max_body_bytes=gateway.max_body_bytes,
            max_model_len=config.model.max_model_len,
            max_output_tokens=gateway.max_output_tokens,
            max_prompts=gateway.max_prompts,
            max_n=gateway.max_n,
            max_sequences=gateway.max_sequences,
            max_stops=gateway.max_stops,
            max_logprobs=gateway.max_logprobs,
        ),
        link=LinkOptions(
            heartbeat_s=config.cluster.heartbeat_s,
            submit_timeout_s=gateway.coordinator_wait_s,
            recovery_timeout_s=config.cluster.recovery_timeout_s,
            max_streams=gateway.max_streams,
        ),
        drain_s=gateway.drain_s,
        write_timeout_s=gateway.write_timeout_s,
        trace=TraceOptions(
            config.observe.trace_endpoint, config.observe.trace_file, config.observe.trace_sample
        ),
        join_s=_JOIN_S,
    )
