"""Turn a request away at once if its targets are predicted to be missed.

It would be a miss either way; let in, it would make others late as well.
"""

from __future__ import annotations

from pd.policies.admit import MAX_RETRY_S, MIN_RETRY_S, Overload
from pd.policies.forecast import Forecast
from pd.types import SLO


def reject_early(predicted: Forecast, slo: SLO, margin: float = 1.0) -> Overload | None:
    """None to admit. What is predicted may be `margin` times the target."""
    ttft, tpot = predicted.ttft_s, predicted.tpot_s
    if slo.ttft_s is not None and ttft is not None and ttft > margin * slo.ttft_s:
        what = f"the first token is predicted in {ttft:.3g} s and its target is {slo.ttft_s:.3g} s"
        if predicted.work_s > margin * slo.ttft_s:
            hopeless = f"{what}, which this prompt alone exceeds"
            return Overload(f"{hopeless}: set a later target", MAX_RETRY_S)
        # By then the queue is so much shorter, if nothing else is let in meanwhile.
        return _overload(what, ttft - margin * slo.ttft_s)
    if slo.tpot_s is not None and tpot is not None and tpot > margin * slo.tpot_s:
        excess_s = tpot - margin * slo.tpot_s
        what = (
            f"{tpot * 1000:.3g} ms a token are predicted and the target is "
            f"{slo.tpot_s * 1000:.3g} ms"
        )
        to_leave = excess_s / predicted.per_seq_s if predicted.per_seq_s > 0.0 else 1.0
        if predicted.ended_per_s > 0.0:
            return _overload(what, to_leave / predicted.ended_per_s)
        return _overload(what, MIN_RETRY_S)
    return None


def _overload(what: str, wait_s: float) -> Overload:
    retry = min(MAX_RETRY_S, max(MIN_RETRY_S, wait_s))
    return Overload(f"{what}; try again in {retry:.0f} s", retry)
