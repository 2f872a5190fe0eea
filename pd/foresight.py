"""Who is turned away for what is predicted, and how far predictions are off. Pure."""

from __future__ import annotations

from pd.assignment import Assignment
from pd.members import Members
from pd.policies.admit import Overload
from pd.policies.early_reject import reject_early, too_long
from pd.router import Route
from pd.types import SLO


def missed(route: Route, slo: SLO, margin: float, members: Members) -> Overload | None:
    """Why new work of this route is turned away, or None if it is predicted to be in time."""
    late = members.nodes[route.placement.prefill].lateness.factor
    overload = reject_early(route.forecast, slo, margin, late)
    return overload and (too_long(_least_s(route, members), slo, margin) or overload)


def learn(assignment: Assignment, ttft_s: float | None, members: Members) -> None:
    """How late the first token was, of what was let in by a prediction."""
    admitted, target_s = assignment.admitted, assignment.ttft_target_s
    node, predicted_s = members.nodes.get(admitted.prefill), admitted.predicted_ttft_s
    if node is None or ttft_s is None or predicted_s is None or target_s is None:
        return
    if not admitted.attempt:  # what was interrupted has waited elsewhere, too
        node.lateness.observe(predicted_s, ttft_s, target_s)


def _least_s(route: Route, members: Members) -> float:
    """How long its prompt takes where the fastest node has nothing else to do. What a node does
    now says little of that: it may be slow because of what decodes beside."""
    rate = max(
        (max(node.hello.prefill_rate, node.snapshot.prefill_rate) for node in members.serving),
        default=0.0,
    )
    return min(route.forecast.work_s, route.num_computed / rate) if rate else 0.0
