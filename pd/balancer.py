"""Gives the nodes of a cell the roles that its load needs, one change at a time. Pure.

Looks at them every second; what it sees is `pd.policies.watch`, what follows from that
`pd.policies.balance`, or where nodes may have any role `pd.policies.reshape`.
"""

from __future__ import annotations

from statistics import fmean

from pd.members import Members
from pd.outbox import Decided, Outbox
from pd.policies.balance import BalanceOptions, BalanceState, Change, NodeLoad, balance
from pd.policies.demand import DemandWatch
from pd.policies.goodput import Speed
from pd.policies.reshape import Reshaped, ReshapeState, reshape
from pd.policies.watch import LoadWatch
from pd.types import Work

_LOOK_S = 1.0


class Balancer:
    """`sent` for every prompt that was placed, `asked` for every one that came, `tick` on every
    turn of the coordinator."""

    def __init__(
        self, options: BalanceOptions, members: Members, outbox: Outbox, demand: DemandWatch
    ) -> None:
        self.options = options
        self.state = BalanceState()
        self.reshaping = ReshapeState()
        self._watch = LoadWatch()
        self._demand = demand
        self._members = members
        self._outbox = outbox
        self._next_look = 0.0

    def sent(self, node_id: str, work_s: float) -> None:
        """A prompt that takes so long to compute went to this node."""
        self._watch.sent(node_id, work_s)

    def asked(self, work: Work, num_computed: int, now: float) -> None:
        """New work came, let in or not, of whose prompt so many tokens have to be computed."""
        request = work.request
        self._demand.asked(len(request.prompt), num_computed, len(work.indices), request.slo, now)

    def tick(self, now: float) -> Change | Reshaped | None:
        """The change that was made, if there was one."""
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_S
        serving = self._members.serving
        leaving = {node.id: node.former for node in serving if node.former}
        loads = self._watch.loads((node.candidate() for node in serving), now, leaving)
        change = self._next(loads, now)
        if change is None:
            return None
        error = self._members.change_role(
            change.node_id, change.role, migrate=True, now=now, end_s=self.options.end_s
        )
        if error:
            self.reshaping.goal = None  # not again before the pause is over
        what = f"{change.node_id} becomes a {change.role} node"
        self._outbox.add(
            Decided(
                f"not done: {what}" if error else what,
                f"{change.reason}; {error}" if error else change.reason,
                change.numbers,
            )
        )
        return None if error else change

    def _next(self, loads: list[NodeLoad], now: float) -> Change | Reshaped | None:
        """By comparing sets of roles, where any are allowed, once enough has been seen to."""
        options = self.options
        if not options.mixed:
            return balance(loads, self.state, options, now)
        demand = self._demand.demand(now, options.ttft_s, options.tpot_s)
        if demand is None:
            return None
        speed = self._speed(demand.context)
        if speed is None:
            return None
        return reshape(loads, self.reshaping, options, demand, speed, now)

    def _speed(self, context: float) -> Speed | None:
        """Of an average node, with sequences of so much context; None while nothing is known of
        any."""
        nodes = [
            (node, node.pace.times)
            for node in self._members.fleet.nodes.values()
            if node.pace is not None and node.pace.times.known
        ]
        if not nodes:
            return None
        return Speed(
            base_s=fmean(times.step_s(0.0, 0.0) for _, times in nodes),
            per_seq_s=fmean(times.per_seq_s(context) for _, times in nodes),
            per_prompt_token_s=fmean(times.per_prompt_token_s for _, times in nodes),
            max_seqs=fmean(node.max_num_seqs for node, _ in nodes),
            room_tokens=fmean(node.snapshot.num_blocks * node.block_size for node, _ in nodes),
        )
