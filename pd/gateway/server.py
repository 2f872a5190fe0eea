"""`GatewayServer`: the HTTP front as one object that any event loop can run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from pd.errors import ConfigError
from pd.gateway.app import build_app
from pd.gateway.continuity import LinkOptions
from pd.gateway.courier import Mailbox
from pd.gateway.limits import Limits
from pd.gateway.link import CellLink
from pd.gateway.listener import BACKLOG, bind
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.served import ServedModel
from pd.gateway.stalled import StallGuard
from pd.gateway.stream import StreamFailedError
from pd.gateway.tenants import Tenants
from pd.gateway.tracing import TraceOptions, Tracer
from pd.gateway.writer import ABORT
from pd.policies.tenant_class import TenantClasses
from pd.types import Peer

_SEND_BUFFER_BYTES = 128 << 10  # of each connection, in the kernel
_TICK_S = 0.1  # of uvicorn's main loop
_LINGER_S = 6.0  # for which a client may keep an idle connection and still use it
_POLL_S = 0.05
_LAST_ANSWER = (b"connection", b"close")
_SHUTTING_DOWN = StreamFailedError("the server is shutting down", status=503)


@dataclass(frozen=True)
class GatewayOptions:
    """Where HTTP is served, for whom, and within which limits. Port 0 takes a free one."""

    model_dir: str | Path
    model_name: str | None = None
    gateway_id: str = "gateway-0"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Mapping[str, str] = field(default_factory=dict)  # to tenants; none, all are served
    classes: TenantClasses = field(default_factory=TenantClasses)
    limits: Limits = field(default_factory=Limits)
    link: LinkOptions = field(default_factory=LinkOptions)
    trace: TraceOptions = field(default_factory=TraceOptions)
    drain_s: float = 10.0  # at shutdown, how long running requests may still take
    write_timeout_s: float = 60.0  # how long a client may leave a piece of its answer unread
    keep_alive_s: int = 75
    join_s: float = 0.0  # how long to wait for the cell before the first connection is accepted


class GatewayServer:
    """Serves HTTP in the running event loop, in whichever thread that is.

    It takes no signals: whoever owns the process calls `shutdown`.
    """

    def __init__(
        self,
        options: GatewayOptions,
        mailbox: Mailbox,
        coordinator: Peer,
        model: ServedModel | None = None,
        listening: socket.socket | None = None,
    ) -> None:
        """Load the tokenizer and, unless there is a `listening` socket, bind the port: ConfigError
        if that fails."""
        tenants = Tenants(options.api_keys)
        keyless = sorted(options.classes.tenants.keys() - set(options.api_keys.values()))
        if keyless:
            raise ConfigError(
                f"slo.tenants gives tenant '{keyless[0]}' a class, but no key in gateway.api_keys "
                "is that tenant's"
            )
        self.options = options
        self.model = model or ServedModel.load(options.model_dir, options.model_name)
        self._socket = listening or bind(options.host, options.port)
        # What the kernel keeps for a client that does not read; by itself it would take megabytes.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.port: int = self._socket.getsockname()[1]
        self.metrics = GatewayMetrics()
        self.link = CellLink(
            options.gateway_id, mailbox, coordinator, self.metrics, options.link,
            tracer=Tracer(options.trace, options.gateway_id) if options.trace.enabled else None,
        )  # fmt: skip
        self.app = build_app(
            self.model, self.link, options.limits,
            tenants=tenants, classes=options.classes, write_timeout_s=options.write_timeout_s,
        )  # fmt: skip
        self._server = _Server(
            uvicorn.Config(
                self.app,
                http=_protocol(),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=options.keep_alive_s,
                timeout_graceful_shutdown=5,
                backlog=BACKLOG,
            ),
            options.write_timeout_s,
        )

    @property
    def url(self) -> str:
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.port}"

    async def serve(self) -> None:
        """Join the cell and serve until `shutdown`."""
        self.link.start()
        try:
            await self.link.await_cell(self.options.join_s)
            await self._server.serve(sockets=[self._socket])
        finally:
            await self.link.close()
            self._socket.close()

    @property
    def ready(self) -> bool:
        """Whether it accepts connections and the cell serves."""
        return self._server.started and self.link.readiness()[0]

    async def retire(self, limit_s: float) -> None:
        """Leave to other gateways what comes, end what is here, and shut down.

        No connection is accepted any more. A request on one that there is already is answered, with
        word that the connection ends. Over is this when all are closed, or have been idle for long;
        after `limit_s` whoever still streams gets an error event."""
        state = self._server.server_state
        for server in self._server.servers:
            server.close()
        # The list that responses begin with, and the one that it is made anew from.
        state.default_headers.append(_LAST_ANSWER)
        self._server.config.encoded_headers.append(_LAST_ANSWER)
        clock = self.link.clock
        now = busy_s = clock()
        end_s = now + limit_s
        while state.connections and now < min(end_s, busy_s + _LINGER_S):
            await asyncio.sleep(_POLL_S)
            now = clock()
            if state.tasks:
                busy_s = now
        await self.shutdown()

    async def shutdown(self) -> None:
        """Refuse new requests, let running ones end for `drain_s`, then end the rest.

        Whoever still streams then gets an error event that says so. Returns when all have
        been told; `serve` returns soon after.
        """
        await self.link.drain(self.options.drain_s)
        self.link.fail_all(_SHUTTING_DOWN)
        self._server.should_exit = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, write_timeout_s: float) -> None:
        super().__init__(config)
        self._guard = StallGuard(write_timeout_s)
        self._look_ticks = max(1, min(10, round(write_timeout_s / 4 / _TICK_S)))

    async def on_tick(self, counter: int) -> bool:
        if counter % self._look_ticks == 0:
            connections = list(self.server_state.connections)
            self._guard.look(connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _protocol() -> type[Any]:
    """uvicorn's fastest HTTP parser here, handing on what cuts a connection (see `writer`)."""
    if importlib.util.find_spec("httptools") is not None:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Base
    else:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Base  # type: ignore[assignment]

    class Protocol(Base):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.app_state = {**self.app_state, ABORT: transport.abort}
            super().connection_made(transport)

    return Protocol
