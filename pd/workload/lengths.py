"""How many tokens prompts and outputs have: distributions, and how a user writes them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pd.workload.rows import MOST_TOKENS


class Lengths(Protocol):
    def draw(self, rng: random.Random) -> int:
        """A length of at least 1."""


@dataclass(frozen=True, slots=True)
class Constant:
    tokens: int

    def __post_init__(self) -> None:
        _check(1 <= self.tokens <= MOST_TOKENS, f"a length of {self.tokens} tokens")

    def draw(self, rng: random.Random) -> int:
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length from `low` to `high` is as likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check(1 <= self.low <= self.high <= MOST_TOKENS, f"lengths of {self.low}-{self.high}")

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Of this `mean`, and a standard deviation of `cv` times it, cut off at `most`."""

    mean: float
    cv: float = 1.0
    most: int = 131_072

    def __post_init__(self) -> None:
        _check(1 <= self.mean <= MOST_TOKENS, f"a mean of {self.mean} tokens")
        _check(0 <= self.cv < math.inf, f"a coefficient of variation of {self.cv}")
        _check(1 <= self.most <= MOST_TOKENS, f"at most {self.most} tokens")

    def draw(self, rng: random.Random) -> int:
        variance = math.log1p(self.cv**2)
        mu = math.log(self.mean) - variance / 2
        return min(self.most, max(1, round(rng.lognormvariate(mu, math.sqrt(variance)))))


@dataclass(frozen=True, slots=True)
class Empirical:
    """Lengths that were seen, each as likely as it was often."""

    values: Sequence[int]

    def __post_init__(self) -> None:
        _check(len(self.values) > 0, "no lengths")
        _check(min(self.values) >= 1, f"a length of {min(self.values)} tokens")

    def draw(self, rng: random.Random) -> int:
        return rng.choice(self.values)


def parse_lengths(text: str) -> Lengths:
    """`512`, `100-900` (uniform), or `lognormal:MEAN`, `lognormal:MEAN,CV`,
    `lognormal:MEAN,CV,MOST`. ValueError says what is wrong."""
    kind, _, rest = text.strip().partition(":")
    try:
        if kind == "lognormal":
            parts = rest.split(",")
            if len(parts) > 3:
                raise ValueError
            mean, cv, most = (*parts, *("1", "131072")[len(parts) - 1 :])
            return LogNormal(float(mean), float(cv), int(most))
        low, dash, high = text.partition("-")
        return Uniform(int(low), int(high)) if dash else Constant(int(low))
    except _OutOfRange:
        raise
    except (ValueError, TypeError):
        raise ValueError(
            f"{text!r} is no length: write 512, 100-900, or lognormal:MEAN[,CV[,MOST]]"
        ) from None


class _OutOfRange(ValueError):
    pass


def _check(fine: bool, what: str) -> None:
    if not fine:
        raise _OutOfRange(f"{what}: lengths must be from 1 to {MOST_TOKENS}")
