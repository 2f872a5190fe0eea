"""The ASGI application: routes, the API key, and errors in OpenAI's shape."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pd.errors import RequestError
from pd.gateway.chat import ChatCompletion, prepare_chat
from pd.gateway.completions import Completion, prepare_completion
from pd.gateway.endpoint import GenerationEndpoint
from pd.gateway.http import TENANT, send_error
from pd.gateway.limits import Limits
from pd.gateway.link import CellLink
from pd.gateway.metrics import GatewayMetrics
from pd.gateway.openapi import OPEN_PATHS, description
from pd.gateway.ops_routes import OpsRoutes, error_response
from pd.gateway.served import ServedModel
from pd.gateway.tenants import Tenants
from pd.gateway.terms import Terms
from pd.gateway.watch_routes import WatchRoutes
from pd.policies.tenant_class import TenantClasses

log = logging.getLogger(__name__)

_WRONG_KEY = RequestError(
    "wrong or missing API key: send it as 'Authorization: Bearer KEY'",
    status=401,
    code="invalid_api_key",
    kind="authentication_error",
)
_BUG = RequestError("internal error", status=500, code="internal_error", kind="server_error")


class CountedSend:
    """The server's `send`, counting responses by status. `raw` is for what needs no counting."""

    __slots__ = ("raw", "started", "_responses")

    def __init__(self, raw: Send, responses: Counter[str]) -> None:
        self.raw = raw
        self.started = False
        self._responses = responses

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._responses[str(message["status"])] += 1
        await self.raw(message)


@dataclass(frozen=True)
class FrontDoor:
    """Checks the API key of everything but `OPEN_PATHS`, then sends a request where it belongs.

    Generation goes straight to its endpoint: every layer in between costs on every token.
    """

    endpoints: Mapping[str, ASGIApp]  # POST, by path
    others: Starlette
    tenants: Tenants
    metrics: GatewayMetrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        counted = CountedSend(send, self.metrics.responses)
        if scope["path"] not in OPEN_PATHS:
            tenant = self.tenants.of(Headers(scope=scope).get("authorization", ""))
            if tenant is None:
                await send_error(counted, _WRONG_KEY)
                return
            scope[TENANT] = tenant
        app = self.endpoints.get(scope["path"]) if scope["method"] == "POST" else None
        try:
            await (app or self.others)(scope, receive, counted)
        except Exception:  # a bug of ours: the log has the traceback, the client the fact
            log.exception("%s %s failed", scope["method"], scope["path"])
            if counted.started:
                raise
            await send_error(counted, _BUG)


def build_app(
    model: ServedModel,
    link: CellLink,
    limits: Limits,
    *,
    tenants: Tenants,
    classes: TenantClasses = TenantClasses(),  # noqa: B008
    write_timeout_s: float = 60.0,
) -> FrontDoor:
    """Everything that answers HTTP, over a link that was started."""
    link.metrics.watch(lambda: link.running, link.status, lambda: link.membership.silence_s)
    terms = Terms(classes, link.clock)
    completions = GenerationEndpoint(
        prepare_completion, Completion, model, link, limits, terms, write_timeout_s
    )
    chat = GenerationEndpoint(
        prepare_chat, ChatCompletion, model, link, limits, terms, write_timeout_s
    )
    endpoints = {"/v1/completions": completions, "/v1/chat/completions": chat}
    others = Starlette(
        routes=[
            # Only to tell a wrong method from a wrong path.
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
            *OpsRoutes(model, link, description(limits, keyed=tenants.keyed)).routes(),
            *WatchRoutes(link, classes.deployment).routes(),
        ],
        exception_handlers={RequestError: _request_error, HTTPException: _http_error},
    )
    others.router.redirect_slashes = False
    return FrontDoor(endpoints, others, tenants, link.metrics)


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
