"""What is not generation: models, health, readiness, metrics, status, the API's description."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pd.errors import RejectedError, RequestError
from pd.gateway import parse
from pd.gateway.http import error_body, error_headers, json_response, operators_only
from pd.gateway.link import CellLink
from pd.gateway.served import ServedModel


class OpsRoutes:
    """Small endpoints over the link and the model. Each is described in `openapi`."""

    def __init__(self, model: ServedModel, link: CellLink, description: dict[str, Any]) -> None:
        self._model = model
        self._link = link
        self._description = msgspec.json.encode(description)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/status", self.status),
            Route("/v1/nodes/{node_id}/role", self.role, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.describe),
        ]

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        self._model.check_name(request.path_params["name"])
        return json_response(self._card())

    async def health(self, request: Request) -> Response:
        """The process is alive; says nothing about the cell."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 if requests are served now, else 503 with the reason."""
        ready, reason = self._link.readiness()
        if not ready:
            raise RejectedError(f"not ready: {reason}", status=503)
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        return Response(
            self._link.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def describe(self, request: Request) -> Response:
        """The OpenAPI description of all this."""
        return Response(self._description, media_type="application/json")

    async def role(self, request: Request) -> Response:
        """Give a node another role, for good: {"role": "prefill", "migrate": true}. Not for
        tenants: the nodes are everybody's."""
        operators_only(request)
        body = parse.role_body(await request.body())
        node_id = request.path_params["node_id"]
        error = await self._link.change_role(node_id, body.role, migrate=body.migrate)
        if error:
            raise RequestError(error, param="role", code="role_not_changed", status=409)
        return json_response({"id": node_id, "role": body.role})

    async def status(self, request: Request) -> Response:
        """The cell as the coordinator last described it, and this gateway's share."""
        ready, reason = self._link.readiness()
        status = self._link.status()
        running = self._link.running
        return json_response(
            {
                "ready": ready,
                "reason": reason,
                "model": self._model.name,
                "max_model_len": status.max_model_len,
                "num_requests": status.num_requests,
                "nodes": [dict(node) for node in status.nodes],
                "prefixes": [dict(prefix) for prefix in status.prefixes],
                "gateway": {
                    "id": self._link.id,
                    "pid": os.getpid(),
                    "tasks": len(asyncio.all_tasks()),
                    "running": sum(each.started for each in running),
                    "waiting": sum(not each.started for each in running),
                },
            }
        )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._model.created,
            "owned_by": "pd",
            "max_model_len": self._link.status().max_model_len or self._model.max_positions,
            "vocab_size": self._model.vocab_size,
        }


def error_response(error: RequestError) -> Response:
    return Response(
        error_body(error),
        status_code=error.status,
        media_type="application/json",
        headers=error_headers(error),
    )
