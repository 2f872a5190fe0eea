"""What became of a request, and whether that may be. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# identical: with the tokens of the undisturbed cell; differs: with others. refused: 429 or 503 with
# Retry-After, before anything was computed; failed: with one error that says why; lost: the
# connection ended without a word; hung: it did not end.
End = Literal["identical", "differs", "refused", "failed", "lost", "hung"]

_REFUSALS = (429, 503)
# How late the death of a process may be noticed, and how much later a client hears of it.
DEATH_SEEN_S = 2.0


@dataclass
class Got:
    """What a client received. `status` 0 is no answer at all."""

    status: int = 0
    tokens: list[list[int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # that it was told, in words
    done: bool = False
    hung: bool = False
    broken: str = ""  # how the connection ended early
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """One request, by its number; times are seconds since the clients began. It was asked once
    more after each of its `refusals`, when it was told to, and `end` is how it ended at last."""

    request: int
    begun_s: float
    ended_s: float
    end: End
    told: str = ""
    ttft_s: float | None = None
    longest_gap_s: float = 0.0
    resumed: bool = False
    refusals: int = 0


def judge(got: Got, expected: Sequence[Sequence[int]]) -> tuple[End, str]:
    """How it ended, and what its client knows of the reason.

    Whatever else happens, a token that is not the right one is `differs`; so is more than one
    error, or one after the end.
    """
    part = len(got.tokens) <= len(expected) and all(
        list(given) == list(right[: len(given)]) for given, right in zip(got.tokens, expected)
    )
    told = "; ".join(got.errors)
    if not part:
        return "differs", "wrong tokens"
    if len(got.errors) > 1 or (got.errors and got.done):
        return "differs", f"not one clear end: {told}"
    if got.errors:
        refused = got.status in _REFUSALS and got.retry_after_s is not None
        return ("refused" if refused else "failed"), f"{got.status}: {told}"
    if got.hung:
        return "hung", got.broken
    if not got.done:
        return "lost", got.broken or "the stream ended early"
    whole = [list(each) for each in got.tokens] == [list(each) for each in expected]
    return ("identical", "") if whole else ("differs", "tokens are missing")


def excused(answer: Answer, deaths: Sequence[float]) -> bool:
    """Whether this may end so: a gateway, whose connections end with it, died meanwhile."""
    if answer.end == "lost":  # a gateway that can say why it fails was not killed
        return any(
            answer.begun_s - DEATH_SEEN_S <= at <= answer.ended_s + DEATH_SEEN_S for at in deaths
        )
    return answer.end == "identical"


def summary(answers: Sequence[Answer], deaths: Sequence[float]) -> dict[str, Any]:
    """Counts for a report; `problems` are the requests that must not have ended as they did."""
    count = max(len(answers), 1)
    ends = Counter(each.end for each in answers)
    problems = [each for each in answers if not excused(each, deaths)]
    return {
        "requests": len(answers),
        "ends": dict(ends),
        "share_identical": ends["identical"] / count,
        "resumed": sum(each.resumed for each in answers),
        "refused_at_first": sum(each.refusals > 0 for each in answers),
        "told": dict(Counter(f"{a.end}: {plain(a.told)}" for a in answers if a.told)),
        "longest_request_s": max((a.ended_s - a.begun_s for a in answers), default=0.0),
        "longest_gap_s": max((a.longest_gap_s for a in answers), default=0.0),
        "longest_ttft_s": max((a.ttft_s or 0.0 for a in answers), default=0.0),
        "problems": [asdict(each) for each in problems],
    }


def window(answers: Sequence[Answer], begin_s: float, end_s: float) -> dict[str, Any]:
    """What clients saw of a fault: of requests that ran at some time in between."""
    seen = [each for each in answers if each.begun_s <= end_s and each.ended_s >= begin_s]
    return {
        "requests": len(seen),
        "ends": dict(Counter(each.end for each in seen)),
        "resumed": sum(each.resumed for each in seen),
        "refused_at_first": sum(each.refusals > 0 for each in seen),
        "longest_gap_s": max((a.longest_gap_s for a in seen), default=0.0),
        "longest_ttft_s": max(
            (a.ttft_s or 0.0 for a in seen if a.begun_s >= begin_s - 1.0), default=0.0
        ),
    }


def plain(message: str) -> str:
    """Messages that differ in numbers only are the same."""
    words = "".join("#" if each.isdigit() else each for each in message)
    while "##" in words:
        words = words.replace("##", "#")
    return words
