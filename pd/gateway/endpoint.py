"""The ASGI endpoint that a generation request goes through, from body to last byte."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Receive, Scope, Send

from pd.errors import RequestError
from pd.gateway.generation import Generation, Prepared
from pd.gateway.http import TENANT, headers_of, read_body, refuse_body, send_error
from pd.gateway.limits import Limits
from pd.gateway.link import CellLink
from pd.gateway.served import ServedModel
from pd.gateway.stream import ClientGoneError, TokenStream
from pd.gateway.terms import Terms
from pd.gateway.trace_context import TraceContext
from pd.gateway.writer import BodyWriter

Prepare = Callable[[bytes, Mapping[str, str], ServedModel, Limits, int], Awaitable[Prepared]]


class GenerationEndpoint:
    """Raw ASGI, because a response object per token would cost more than the token.

    A disconnect is noticed while waiting, streaming or not, and cancels at once.
    """

    def __init__(
        self,
        prepare: Prepare,
        generation: type[Generation],
        model: ServedModel,
        link: CellLink,
        limits: Limits,
        terms: Terms,
        write_timeout_s: float,
    ) -> None:
        self._prepare = prepare
        self._generation = generation
        self._model = model
        self._link = link
        self._limits = limits
        self._terms = terms
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            data = await read_body(scope, receive, self._limits.max_body_bytes)
        except RequestError as error:
            await refuse_body(scope, receive, send, error)
            return
        except ClientGoneError:
            return
        began = self._link.clock()
        tenant = scope.get(TENANT, "")
        send = self._terms.limited(send, tenant)
        try:
            headers = headers_of(scope)
            prepared = await self._prepare(
                data, headers, self._model, self._limits, self._model_len()
            )
            prepared = self._terms.apply(prepared, tenant)
            self._terms.admit(prepared, tenant)
            generation = self._generation(self._model, self._link, prepared, tenant)
            stream = self._submit(generation, prepared, tenant, TraceContext.of(headers))
            try:
                await self._answer(generation, stream, scope, receive, send)
            finally:
                for running in stream.requests:
                    self._terms.ended(running, tenant)
        except RequestError as error:
            await send_error(send, error, self._link.clock() - began)
        except ClientGoneError:
            return

    def _submit(
        self,
        generation: Generation,
        prepared: Prepared,
        tenant: str,
        trace: TraceContext | None,
    ) -> TokenStream:
        try:
            return self._link.submit(generation.requests, trace)
        except RequestError:
            self._terms.refused(prepared, tenant)
            raise

    def _model_len(self) -> int:
        """The longest sequence that model, configuration and nodes all allow."""
        longest = self._link.status().max_model_len or self._model.max_positions
        return min(longest, self._limits.max_model_len or longest, self._model.max_positions)

    async def _answer(
        self,
        generation: Generation,
        stream: TokenStream,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        writer = BodyWriter(scope, send, self._write_timeout_s)
        watcher = asyncio.create_task(_disconnect_cancels(receive, stream))
        try:
            async with stream:
                if generation.options.stream:
                    await generation.streamed(stream, writer)
                else:
                    await generation.whole(stream, send)
        finally:
            watcher.cancel()
            writer.close()


async def _disconnect_cancels(receive: Receive, stream: TokenStream) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            stream.disconnect()
            return
