"""What follows the load in a cell, and the loss of nodes: the roles of those there are, and how
many there are. Pure."""

from __future__ import annotations

from pd.balancer import Balancer
from pd.members import Members
from pd.outbox import Outbox
from pd.policies.balance import BalanceOptions
from pd.policies.demand import DemandWatch
from pd.scaler import Scaler
from pd.standin import StandIn
from pd.types import Work


class Steering:
    """`sent` for every prompt, `tick` on every turn of the coordinator. Without `balance` roles
    stay, as long as the cell has both phases or has lacked one for less than `stand_in_s`; numbers
    do until `scaler` has bounds."""

    def __init__(
        self,
        balance: BalanceOptions | None,
        members: Members,
        outbox: Outbox,
        demand: DemandWatch,
        stand_in_s: float,
    ) -> None:
        self._balancer = None if balance is None else Balancer(balance, members, outbox, demand)
        self._stand_in = StandIn(members, outbox, stand_in_s)
        self.scaler = Scaler(members, outbox)

    def sent(self, node_id: str, work_s: float) -> None:
        """A prompt that takes so long to compute went to this node."""
        if self._balancer is not None:
            self._balancer.sent(node_id, work_s)
        self.scaler.sent(node_id, work_s)

    def asked(self, work: Work, num_computed: int, now: float) -> None:
        """New work came, let in or not, of whose prompt so many tokens have to be computed."""
        if self._balancer is not None:
            self._balancer.asked(work, num_computed, now)

    def tick(self, now: float) -> bool:
        """Whether a role was changed."""
        changed = self._stand_in.tick(now)
        changed |= self._balancer is not None and self._balancer.tick(now) is not None
        self.scaler.tick(now)
        return changed
