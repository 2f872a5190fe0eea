"""Turn a request away at once if its targets are predicted to be missed.

It would be a miss either way; let in, it would make others late as well.
"""

from __future__ import annotations

from pd.policies.admit import MAX_RETRY_S, MIN_RETRY_S, Overload
from pd.policies.forecast import Forecast
from pd.types import SLO


def reject_early(
    predicted: Forecast, slo: SLO, margin: float = 1.0, late: float = 1.0
) -> Overload | None:
    """None to admit. What is predicted may be `margin` times the target; first tokens come
    after up to `late` times what is predicted for them."""
    ttft, tpot = predicted.ttft_s, predicted.tpot_s
    of_it = "" if margin == 1.0 else f", of which admission takes {margin:.0%}"
    if slo.ttft_s is not None and ttft is not None and late * ttft > margin * slo.ttft_s:
        what = f"the first token is predicted in {late * ttft:.3g} s"
        what += f" and its target is {slo.ttft_s:.3g} s{of_it}"
        # One that is near its target with nothing to wait for would never be let in.
        if ttft > predicted.work_s or predicted.work_s > max(1.0, margin) * slo.ttft_s:
            # By then the queue is so much shorter, if nothing else is let in meanwhile.
            return _overload(what, ttft - margin * slo.ttft_s / late)
    if slo.tpot_s is not None and tpot is not None and tpot > margin * slo.tpot_s:
        excess_s = tpot - margin * slo.tpot_s
        what = (
            f"{tpot * 1000:.3g} ms a token are predicted and the target is "
            f"{slo.tpot_s * 1000:.3g} ms{of_it}"
        )
        to_leave = excess_s / predicted.per_seq_s if predicted.per_seq_s > 0.0 else 1.0
        if predicted.ended_per_s > 0.0:
            return _overload(what, to_leave / predicted.ended_per_s)
        return _overload(what, MIN_RETRY_S)
    return None


def too_long(least_s: float, slo: SLO, margin: float = 1.0) -> Overload | None:
    """Of a prompt that takes at least this long, on nodes with nothing else to do: no retry helps
    if that alone exceeds its target."""
    if slo.ttft_s is None or least_s <= max(1.0, margin) * slo.ttft_s:
        return None
    what = f"this prompt alone takes {least_s:.3g} s and its TTFT target is {slo.ttft_s:.3g} s"
    return Overload(f"{what}: name a later target", MAX_RETRY_S, status=400)


def _overload(what: str, wait_s: float) -> Overload:
    retry = min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
    return Overload(f"{what}; try again in {retry:.0f} s", retry)
