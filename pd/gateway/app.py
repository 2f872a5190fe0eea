"""The ASGI application: routes, the API key, and errors in OpenAI's shape."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pd.errors import RequestError
from pd.gateway.chat import ChatCompletion, prepare_chat
from pd.gateway.completions import Completion, prepare_completion
from pd.gateway.endpoint import GenerationEndpoint
from pd.gateway.http import send_error
from pd.gateway.limits import Limits
from pd.gateway.link import CellLink
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.ops_routes import OpsRoutes, error_response
from pd.gateway.served import ServedModel


@dataclass(frozen=True)
class Guard:
    """Checks the API key of everything under /v1, and counts responses by status.

    `/health`, `/ready` and `/metrics` stay open: probes and scrapers have no key, and nothing
    there tells about a request.
    """

    app: ASGIApp
    api_key: str | None
    metrics: GatewayMetrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responses[str(message["status"])] += 1
            await send(message)

        if scope["path"].startswith("/v1") and not self._allowed(scope):
            refused = RequestError(
                "wrong or missing API key: send it as 'Authorization: Bearer KEY'",
                status=401, code="invalid_api_key", kind="authentication_error",
            )  # fmt: skip
            await send_error(counted, refused)
            return
        await self.app(scope, receive, counted)

    def _allowed(self, scope: Scope) -> bool:
        if self.api_key is None:
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # compare_digest takes as long for a near miss as for a far one.
        same = hmac.compare_digest(given.strip().encode(), self.api_key.encode())
        return scheme.lower() == "bearer" and same


def build_app(
    model: ServedModel,
    link: CellLink,
    limits: Limits,
    *,
    api_key: str | None = None,
    write_timeout_s: float = 60.0,
) -> Starlette:
    """Everything that answers HTTP, over a link that was started."""
    link.metrics.watch(lambda: link.running, link.status)
    completions = GenerationEndpoint(
        prepare_completion, Completion, model, link, limits, write_timeout_s
    )
    chat = GenerationEndpoint(prepare_chat, ChatCompletion, model, link, limits, write_timeout_s)
    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            *OpsRoutes(model, link).routes(),
        ],
        middleware=[Middleware(Guard, api_key=api_key, metrics=link.metrics)],
        exception_handlers={
            RequestError: _request_error,
            HTTPException: _http_error,
            Exception: _server_error,
        },
    )
    app.router.redirect_slashes = False
    return app


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router raises: no such path, or another method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message, code = f"{where} is not possible; allowed: {allowed}", "method_not_allowed"
    else:
        message, code = f"{where}: {error.detail}", "not_found"
    response = error_response(RequestError(message, status=error.status_code, code=code))
    response.headers.update(error.headers or {})
    return response


async def _server_error(request: Request, error: Exception) -> Response:
    """A bug of ours: the log has the traceback, the client only the fact."""
    return error_response(
        RequestError("internal error", status=500, code="internal_error", kind="server_error")
    )
