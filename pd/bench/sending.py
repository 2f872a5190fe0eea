"""One request: sent, its tokens timed as they arrive, and what became of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise

import httpx

from pd.client import calls
from pd.client.answers import Delta
from pd.client.events import StreamReader
from pd.errors import ClientError
from pd.types import SLO
from pd.workload.arrival import Arrival
from pd.workload.outcome import Outcome, Status

_REJECTED = (429, 503)


@dataclass(slots=True)
class Sending:
    """A request under way. Times are seconds since the run's start, `start_s` on the clock."""

    arrival: Arrival
    body: bytes
    start_s: float
    sent_s: float | None = None
    first_s: float | None = None

    async def run(self, http: httpx.AsyncClient, headers: dict[str, str]) -> Outcome:
        """The outcome, whatever it is; only being cancelled is an exception."""
        times: list[float] = []
        self.sent_s = self._now()
        try:
            count = await self._stream(http, headers, times)
        except _Refused as error:
            status: Status = "rejected" if error.status in _REJECTED else "error"
            return self._outcome(status, [], 0, str(error))
        except httpx.TransportError as error:
            problem = calls.transport_error(error, streaming=self.first_s is not None)
            return self._outcome("error", times, len(times), str(problem))
        except (ClientError, OSError) as error:
            return self._outcome("error", times, len(times), str(error))
        if not count:
            return self._outcome("error", [], 0, "the answer had no tokens")
        return self._outcome("ok", times, count)

    def cancelled(self) -> Outcome:
        """For one that was stopped before its end."""
        return self._outcome("error", [], 0, "stopped: the run had missed its goal already")

    def missed_by(self, now_s: float, slo: SLO | None) -> bool:
        """Whether its first token is overdue."""
        target = (self.arrival.slo or slo or SLO()).ttft_s
        return (
            target is not None
            and self.sent_s is not None
            and self.first_s is None
            and now_s - self.sent_s > target
        )

    async def _stream(
        self, http: httpx.AsyncClient, headers: dict[str, str], times: list[float]
    ) -> int:
        """Fills in when each token came; returns how many there were by the server's count."""
        reader = StreamReader()
        empty = 0
        async with http.stream(
            "POST", calls.COMPLETIONS, content=self.body, headers=headers
        ) as response:
            if not response.is_success:
                await response.aread()
                raise _Refused(calls.status_error(response).args[0], response.status_code)
            async for data in response.aiter_bytes():
                now = self._now()
                for delta in reader.feed(data):
                    if self.first_s is None:
                        self.first_s = now
                    times.append(now)
                    empty += _says_only_the_end(delta)
            reader.end()
        # A server may tell the finish reason with the last token, or in an event of its own.
        counted = reader.usage.completion_tokens if reader.usage else len(times) - empty
        if empty and len(times) > counted:
            times.pop()
        return counted

    def _outcome(self, status: Status, times: list[float], count: int, detail: str = "") -> Outcome:
        sent = self._now() if self.sent_s is None else self.sent_s
        tpot = (times[-1] - times[0]) / (count - 1) if times and count > 1 else None
        return Outcome(
            self.arrival,
            times[0] - sent if times else None,
            tpot,
            count,
            status,
            times[-1] if status == "ok" else self._now(),
            sent,
            tuple(after - before for before, after in pairwise(times)),
            detail,
        )

    def _now(self) -> float:
        return time.monotonic() - self.start_s


class _Refused(Exception):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _says_only_the_end(delta: Delta) -> bool:
    return delta.finish_reason is not None and not delta.text and not delta.token_ids


async def sleep_until(clock_s: float) -> None:
    """Until `time.monotonic()` is `clock_s`, at once if it is later."""
    delay = clock_s - time.monotonic()
    if delay > 0:
        await asyncio.sleep(delay)
