"""What processes say to each other when a running cell changes: its nodes' roles, how many
there are, and who leaves.

Parts of `pd.messages`, which is what others import.
"""

from __future__ import annotations

from dataclasses import dataclass

from pd.policies.balance import BalanceOptions
from pd.policies.scale import ScaleOptions
from pd.types import Role


@dataclass(frozen=True, slots=True)
class SetRole:
    """Take on this role. The weights stay, and so do the blocks.

    With `migrate`, what the new role would not be sent goes on elsewhere: its gateways hear that
    it was interrupted. Else it ends here.
    """

    role: Role
    migrate: bool = True


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Somebody asks for `SetRole`; `call` names the question in the answer, `RoleChanged`."""

    call: int
    node_id: str
    role: Role
    migrate: bool = True


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """The node has been told; or with an `error` it was not, and that is why."""

    call: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """A node's process is to end: no new work for it from now on.

    What still runs there after `move_s` goes on elsewhere. Answered by `Draining`; the cell's
    status says when the node is empty."""

    call: int
    node_id: str
    move_s: float


@dataclass(frozen=True, slots=True)
class Draining:
    """It gets no more work; or with an `error` it goes on, and that is why."""

    call: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """From now on the number of nodes follows the load within these bounds, those that just meet
    `targets` being at a pressure of 1. Without options it stays as it is. Answered by `Scaling`;
    the cell's status says how many are wanted."""

    call: int
    options: tuple[ScaleOptions, ...]
    targets: BalanceOptions


@dataclass(frozen=True, slots=True)
class Scaling:
    """It does."""

    call: int
