"""For who watches a cell: the live page, and the JSON that it and `pd top` draw.

    /dashboard              the page: static files, no data, no key
    /v1/history             samples of the last half hour; `?since=T` only later ones
    /v1/requests/recent     requests that run or have ended, with their timelines; `?limit=N`
    /v1/decisions           what was decided, and why; `?limit=N`

What is under /v1 tells of everybody's requests, so a tenant's key does not open it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pd.errors import RequestError
from pd.gateway.decisions import MAX_DECISIONS
from pd.gateway.http import json_response, operators_only
from pd.gateway.journal import MAX_ENDED
from pd.gateway.link import CellLink
from pd.gateway.openapi import PAGE, PAGE_FILES
from pd.types import SLO

_FILES = Path(__file__).parent / "dashboard"
_HEADERS = {
    # Nothing from elsewhere, nothing inline, no frames: text of clients is shown here.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class WatchRoutes:
    """Views of a gateway's journal."""

    def __init__(self, link: CellLink, targets: SLO) -> None:
        self._link = link
        self._targets = targets

    def routes(self) -> list[Route]:
        return [
            Route(PAGE, _file("index.html", "text/html")),
            *(Route(f"{PAGE}/{name}", _file(name, kind)) for name, kind in PAGE_FILES.items()),
            Route("/v1/history", self.history),
            Route("/v1/requests/recent", self.recent),
            Route("/v1/decisions", self.decisions),
        ]

    async def history(self, request: Request) -> Response:
        operators_only(request)
        since = _number(request, "since", 0.0, math.inf)
        decisions = self._link.journal.decisions
        targets = {"ttft_s": self._targets.ttft_s, "tpot_s": self._targets.tpot_s}
        now = time.time()
        return json_response(
            {
                "gateway": self._link.id,
                "now": now,
                "targets": targets,
                "gone": decisions.gone(now),
                **self._link.journal.history.columns(since),
            }
        )

    async def recent(self, request: Request) -> Response:
        operators_only(request)
        limit = int(_number(request, "limit", MAX_ENDED, MAX_ENDED))
        return json_response(self._link.journal.recent(self._link.running, limit))

    async def decisions(self, request: Request) -> Response:
        operators_only(request)
        limit = int(_number(request, "limit", MAX_DECISIONS, MAX_DECISIONS))
        return json_response({"decisions": self._link.journal.decisions.latest(limit)})


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Answers with this file, read once."""
    body = (_FILES / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(body, media_type=media_type, headers=_HEADERS)

    return answer


def _number(request: Request, name: str, default: float, most: float) -> float:
    """A query parameter that is a number of at least 0; RequestError if it is something else."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise RequestError(f"{name} must be a number of at least 0, not {text[:50]!r}", param=name)
    return min(value, most)
