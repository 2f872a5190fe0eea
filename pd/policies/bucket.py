"""Token buckets: how fast a tenant may ask. Pure.

A bucket fills at a steady rate up to its capacity, and what is taken may leave it in debt: then
nothing more is let in until the debt is paid off. So in any span of t seconds at most
capacity + rate * t is taken, and what was taken last on top of that, whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass

_MINUTE_S = 60.0


class Bucket:
    """`rate` units a second, at most `capacity` at once; full at first."""

    __slots__ = ("rate", "capacity", "_level", "_at_s")

    def __init__(self, rate: float, capacity: float) -> None:
        if not (rate > 0 and capacity > 0):
            raise ValueError(f"a bucket of rate {rate:g} and capacity {capacity:g} lets nothing in")
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at_s: float | None = None

    def level(self, now: float) -> float:
        """What may be taken now; negative while in debt. Time that runs backwards stands still."""
        if self._at_s is None or now > self._at_s:
            if self._at_s is not None:
                gained = (now - self._at_s) * self.rate
                self._level = min(self.capacity, self._level + gained)
            self._at_s = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; 0 for now. More than the bucket holds may be taken
        when it is full, or it could never be."""
        lacking = min(amount, self.capacity) - self.level(now)
        return max(0.0, lacking / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take it, into debt if need be. A negative amount gives back what was not used."""
        self._level = min(self.capacity, self.level(now) - amount)

    def full_in_s(self, now: float) -> float:
        """Seconds until it is full, if nothing more is taken."""
        return (self.capacity - self.level(now)) / self.rate


@dataclass(frozen=True, slots=True)
class RateRefusal:
    """Which limit a request would break, and when it is worth another try."""

    message: str
    retry_after_s: float


class RateLimiter:
    """The limits of one tenant: requests a second, and tokens a minute, prompt and output.

    A prompt's tokens are taken when it is let in, its output's when it has ended, since nobody
    knows before how long it will be. None of a limit is no limit.
    """

    def __init__(self, requests_per_s: float | None, tokens_per_min: float | None) -> None:
        self.requests = self.tokens = None
        if requests_per_s is not None:
            self.requests = Bucket(requests_per_s, max(1.0, requests_per_s))
        if tokens_per_min is not None:
            self.tokens = Bucket(tokens_per_min / _MINUTE_S, tokens_per_min)

    def admit(self, num_requests: int, num_tokens: int, now: float) -> RateRefusal | None:
        """None where they are let in, and then they are counted; else nothing is."""
        waits = [
            (bucket.wait_s(amount, now), name, bucket)
            for bucket, amount, name in (
                (self.requests, num_requests, "requests a second"),
                (self.tokens, num_tokens, "tokens a minute"),
            )
            if bucket is not None
        ]
        wait_s, name, bucket = max(waits, key=lambda each: each[0], default=(0.0, "", None))
        if bucket is not None and wait_s > 0:
            limit = bucket.rate * (_MINUTE_S if bucket is self.tokens else 1.0)
            return RateRefusal(
                f"the rate limit of {limit:g} {name} is reached; try again in {wait_s:.1f} s",
                wait_s,
            )
        if self.requests is not None:
            self.requests.take(num_requests, now)
        if self.tokens is not None:
            self.tokens.take(num_tokens, now)
        return None

    def generated(self, num_tokens: int, now: float) -> None:
        """A request has ended, after so many tokens of output."""
        if self.tokens is not None:
            self.tokens.take(num_tokens, now)

    def give_back(self, num_requests: int, num_tokens: int, now: float) -> None:
        """These were let in, and then the cell did not take them."""
        if self.requests is not None:
            self.requests.take(-num_requests, now)
        if self.tokens is not None:
            self.tokens.take(-num_tokens, now)
