"""Whether a request may enter the cell: a bound on how many wait for their first token.

Prediction, the other way to decide, is in `early_reject`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Admission = Literal["none", "queue", "predicted"]

MIN_RETRY_S = 1.0
MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Overload:
    """Why a request is turned away, and when it is worth another try."""

    message: str
    retry_after_s: float
    status: int = 429  # 400 where no retry can help


def admit(num_waiting: int, max_waiting: int, wait_s: float) -> Overload | None:
    """None to admit. `wait_s` is the shortest predicted wait for a prefill in the cell: when
    half of it has passed, about half of the queue is gone."""
    if num_waiting < max_waiting:
        return None
    retry = min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s / 2))
    return Overload(
        f"{num_waiting} requests are waiting and the limit is {max_waiting}; "
        f"try again in {retry:.0f} s",
        retry,
    )
