"""On which terms a tenant is served: its targets and priority, and how fast it may ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from starlette.types import Message, Send

from pd.errors import RejectedError, RequestError
from pd.gateway.generation import Prepared
from pd.gateway.stream import RunningRequest
from pd.policies.bucket import Bucket, RateLimiter
from pd.policies.tenant_class import TenantClass, TenantClasses

Header = tuple[bytes, bytes]

_MINUTE_S = 60.0


class Terms:
    """The terms of every tenant. Rate limits count what this gateway has seen."""

    def __init__(self, classes: TenantClasses, clock: Callable[[], float]) -> None:
        self._classes = classes
        self._clock = clock
        self._limiters: dict[str, RateLimiter] = {}

    def apply(self, prepared: Prepared, tenant: str) -> Prepared:
        """The request with what its class adds; RequestError where it asks for more than that."""
        mine = self._classes.of(tenant)
        priority = mine.priority if prepared.priority is None else prepared.priority
        if mine.min_priority is not None and priority < mine.min_priority:
            raise RequestError(
                f"'priority' must be at least {mine.min_priority} for tenants of class "
                f"'{mine.name}'",
                param="priority", code="invalid_value",
            )  # fmt: skip
        return dataclasses.replace(
            prepared,
            priority=priority,
            slo=mine.targets(prepared.slo, self._classes.deployment),
            tenant_class=mine.name,
            weight=mine.weight,
        )

    def admit(self, prepared: Prepared, tenant: str) -> None:
        """Count a request against its tenant's limits; RejectedError if that breaks one."""
        limiter = self._limiter(tenant)
        if limiter is None:
            return
        num_tokens = sum(map(len, prepared.prompts))
        refusal = limiter.admit(len(prepared.prompts), num_tokens, self._clock())
        if refusal is not None:
            raise RejectedError(
                refusal.message, retry_after_s=refusal.retry_after_s, code="rate_limit_exceeded"
            )

    def refused(self, prepared: Prepared, tenant: str) -> None:
        """The cell took none of an admitted request: it does not count."""
        limiter = self._limiter(tenant)
        if limiter is not None:
            num_tokens = sum(map(len, prepared.prompts))
            limiter.give_back(len(prepared.prompts), num_tokens, self._clock())

    def ended(self, running: RunningRequest, tenant: str) -> None:
        """One prompt of an admitted request is over, one way or another."""
        limiter = self._limiter(tenant)
        if limiter is None:
            return
        record, now = running.record, self._clock()
        if running.outcome == "rejected" and not record.num_output:
            limiter.give_back(1, len(record.request.prompt), now)
        else:
            limiter.generated(record.num_output, now)

    def limited(self, send: Send, tenant: str) -> Send:
        """`send`, telling the client of a limited tenant how much it has left."""
        limiter = self._limiter(tenant)
        return send if limiter is None else _LimitedSend(send, limiter, self._clock)

    def _limiter(self, tenant: str) -> RateLimiter | None:
        limiter = self._limiters.get(tenant)
        if limiter is None:
            mine: TenantClass = self._classes.of(tenant)
            if mine.requests_per_s is None and mine.tokens_per_min is None:
                return None
            limiter = RateLimiter(mine.requests_per_s, mine.tokens_per_min)
            self._limiters[tenant] = limiter
        return limiter


class _LimitedSend:
    """Adds the headers of a tenant's limits to the start of a response."""

    __slots__ = ("raw", "_send", "_limiter", "_clock")

    def __init__(self, send: Send, limiter: RateLimiter, clock: Callable[[], float]) -> None:
        self.raw: Send = getattr(send, "raw", send)
        self._send = send
        self._limiter = limiter
        self._clock = clock

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], *rate_headers(self._limiter, self._clock())]
            message = {**message, "headers": headers}
        await self._send(message)


def rate_headers(limiter: RateLimiter, now: float) -> list[Header]:
    """As OpenAI names them; the limit of requests is a second's, that of tokens a minute's."""
    headers: list[Header] = []
    if limiter.requests is not None:
        headers += _headers_of("requests", limiter.requests, limiter.requests.rate, now)
    if limiter.tokens is not None:
        headers += _headers_of("tokens", limiter.tokens, limiter.tokens.rate * _MINUTE_S, now)
    return headers


def _headers_of(name: str, bucket: Bucket, limit: float, now: float) -> list[Header]:
    values = {
        "limit": f"{limit:g}",
        "remaining": str(max(0, int(bucket.level(now)))),
        "reset": f"{bucket.full_in_s(now):.3f}s",
    }
    return [(f"x-ratelimit-{key}-{name}".encode(), v.encode()) for key, v in values.items()]
