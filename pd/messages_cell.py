"""What the processes of a cell say to each other about themselves: a part of `pd.messages`,
which is what others import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pd.types import NodeSnapshot, Notice, Peer, Role, StepTime

COORDINATOR = "coordinator"
SUPERVISOR = "supervisor"  # what starts and ends processes, and asks the coordinator beside it


@dataclass(frozen=True, slots=True)
class NodeHello:
    """A node process asks to join; `incarnation` is when it began, in ns since 1970: more than that
    of any process before it under its id.

    One that was welcomed before says so: its `epoch`, and the `peers` it was last told of. A
    coordinator that has just been started anew learns from that who is in its cell.
    """

    node_id: str
    role: Role
    incarnation: int
    endpoints: Mapping[str, str]
    layout: int  # KVLayout.content: nodes for which it differs never exchange blocks
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    pid: int
    host: str
    device: str = "cpu"
    epoch: int = 0
    peers: tuple[Peer, ...] = ()
    # Measured at its start: steps of several kinds, and prompt tokens a second of a full one.
    prefill_rate: float = 0.0
    steps: tuple[StepTime, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayHello:
    """A gateway process asks to join; `epoch` and `peers` are as in `NodeHello`."""

    gateway_id: str
    incarnation: int
    endpoints: Mapping[str, str]
    pid: int = 0
    host: str = ""
    epoch: int = 0
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a hello: the epoch that every later message of this process carries.

    It keeps the one it has if only the coordinator is another process than before, of the epoch
    `coordinator`.
    """

    id: str
    incarnation: int
    epoch: int
    coordinator: int = 1


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A gateway is alive, or the coordinator; nodes send `Snapshot` instead."""

    id: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A node's state after a step, or its heartbeat."""

    snapshot: NodeSnapshot


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes of the cell as they now are; replaces what was known before."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A process is gone for good: nothing it was sending is still being written."""

    id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class CellStatus:
    """What the coordinator knows of the cell, for `/ready`, `/metrics` and `pd status`.

    `nodes` is plain data (one mapping a node: id, role, epoch, pid, host, state, queue, ...), and
    so are `prefixes`, the most popular beginnings of prompts (key, tokens, requests, holders).
    `notices` are the last few, oldest first. `wanted` is how many nodes of a role there are to be,
    of the roles whose number follows the load.
    """

    ready: bool
    reason: str
    nodes: tuple[Mapping[str, str | int | float | bool], ...]
    num_requests: int = 0
    max_model_len: int = 0
    prefixes: tuple[Mapping[str, str | int], ...] = ()
    notices: tuple[Notice, ...] = ()
    wanted: Mapping[Role, int] = field(default_factory=dict)
