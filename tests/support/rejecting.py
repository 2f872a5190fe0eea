"""A coordinator that refuses work."""

from __future__ import annotations

from collections.abc import Callable

from pd.messages import Rejected
from pd.types import Work


def reject_with(
    status: int,
    times: int = 10**9,
    retry_after_s: float = 0.05,
    message: str = "too much to do",
) -> Callable[[Work], Rejected | None]:
    """For `FakeCell.reject`: refuses the first `times` pieces of work."""
    count = iter(range(times))

    def reject(work: Work) -> Rejected | None:
        if next(count, None) is None:
            return None
        return Rejected(
            work.request.request_id, work.indices, work.attempt, status, message,
            retry_after_s,
        )  # fmt: skip

    return reject
