"""When requests arrive: endless ascending times in seconds, from 0 on."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson_times(rate: float, rng: random.Random) -> Iterator[float]:
    """Arrivals independent of each other, `rate` a second on average."""
    return gamma_times(rate, 1.0, rng)


def gamma_times(rate: float, cv: float, rng: random.Random) -> Iterator[float]:
    """Gaps from a gamma distribution of mean 1/rate whose standard deviation is `cv` times that:
    above 1 arrivals come in bursts, below 1 they are more even than chance, 1 is Poisson."""
    _check(rate)
    if not cv > 0:
        raise ValueError(f"the coefficient of variation must be above 0, not {cv}")
    shape = 1 / cv**2
    now = 0.0
    while True:
        now += rng.gammavariate(shape, 1 / (rate * shape))
        yield now


def fixed_times(rate: float) -> Iterator[float]:
    """A request every 1/rate seconds."""
    _check(rate)
    number = 0
    while True:
        yield number / rate
        number += 1


def _check(rate: float) -> None:
    if not rate > 0:
        raise ValueError(f"the rate must be above 0, not {rate}")
