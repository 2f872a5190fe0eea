"""What processes say to each other, as plain dataclasses (encoded by `pd.wire`).

    gateway     -> coordinator   Submit, Cancel, Finished, Ongoing, GatewayHello, Heartbeat
    coordinator -> gateway       Welcome, Admitted, Rejected, Interrupted, Peers, CellStatus
    node        -> coordinator   NodeHello, Snapshot
    coordinator -> node          Welcome, Peers, Heartbeat, Reserve, StartPrefill, Abort, PeerLost
    decode      -> prefill       Granted, AbortTransfer
    prefill     -> decode        PrefillDone, Renew, Stopped     (and blocks, by kvstore.transport)
    node        -> gateway       Tokens, Interrupted, Started
    node        -> pool          Put; answered by PutGranted, then blocks
    node        -> holder        Fetch, AbortTransfer; answered by blocks, and Stopped if some lack
    holder      -> coordinator   BlockEvents; asked for anew by SyncBlocks
    coordinator -> node          UsePool, SetRole
    supervisor  -> coordinator   ChangeRole, Drain, Scale (in the same process: no bytes)

A piece of work is named by (request id, output indices, attempt). Whoever ends one
abnormally sends `Interrupted` to its gateway, which submits a new attempt that continues from
the tokens its client already has; a repeated or late `Interrupted` is stale and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pd.messages_cell import (
    COORDINATOR,
    SUPERVISOR,
    CellStatus,
    GatewayHello,
    Heartbeat,
    NodeHello,
    PeerLost,
    Peers,
    Snapshot,
    Welcome,
)
from pd.messages_change import (
    ChangeRole,
    Drain,
    Draining,
    RoleChanged,
    Scale,
    Scaling,
    SetRole,
)
from pd.types import FinishReason, Source, Tier, TokenEvent, Work

__all__ = [
    "COORDINATOR", "KINDS", "SUPERVISOR", "Abort", "AbortTransfer", "Admitted", "Beacon",
    "BlockEvents", "Cancel", "CellStatus", "ChangeRole", "Drain", "Draining", "Fetch", "Finished",
    "GatewayHello", "Granted",
    "Heartbeat", "Interrupted", "Message", "NodeHello", "Ongoing", "PeerLost", "Peers",
    "PrefillDone", "Put", "PutGranted", "Rejected", "Renew", "Resend", "Reserve", "RoleChanged",
    "Scale", "Scaling", "SetRole", "Snapshot", "StartPrefill", "Started", "Stopped", "Submit",
    "SyncBlocks", "Tokens", "UsePool", "Verify", "Welcome",
]  # fmt: skip


# ------------------------------------------------------------------ a request's way
@dataclass(frozen=True, slots=True)
class Submit:
    work: Work


@dataclass(frozen=True, slots=True)
class Admitted:
    """Where the work runs: its nodes, and the epochs they were in.

    And what spoke for it: prompt tokens that the prefill node has already, who has more of the
    prompt, and when its first token was predicted, in seconds, if it has targets.
    """

    request_id: str
    indices: tuple[int, ...]
    attempt: int
    prefill: str
    decode: str
    prefill_epoch: int = 0
    decode_epoch: int = 0
    cached_tokens: int = 0
    fetch_from: str = ""
    predicted_ttft_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ongoing:
    """What an earlier coordinator admitted and its gateway still waits for: a coordinator that was
    started anew hears of all of it before anything else."""

    admitted: Admitted


@dataclass(frozen=True, slots=True)
class Verify:
    """Interrupt what of this is not here, on the node that decodes it: the coordinator that gave
    the order has ended, and the order may have been lost with it."""

    gateway: str
    admitted: Admitted


@dataclass(frozen=True, slots=True)
class Rejected:
    """The work will not run. `status` is the HTTP status that says so (400, 429 or 503)."""

    request_id: str
    indices: tuple[int, ...]
    attempt: int
    status: int
    message: str
    retry_after_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The work ended before its sequences did (preempted, node lost, hand-off failed).

    With `unstarted_only` it concerns those of which no token of this attempt has come: their
    prefill node was lost, and if the first token was lost with it no other node has it.
    """

    request_id: str
    indices: tuple[int, ...]
    attempt: int
    reason: str
    unstarted_only: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client went away, or the gateway has all it needs (a stop string was found).

    With `node`, that one still sends tokens of this attempt, which nobody waits for.
    """

    request_id: str
    indices: tuple[int, ...]
    node: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The gateway saw the last token of these sequences, which have `num_tokens` together;
    `ttft_s` is the request's, if known."""

    request_id: str
    indices: tuple[int, ...]
    ttft_s: float | None = None
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reserve:
    """Make room for a hand-off; answered by `Granted` to the prefill node once there is."""

    work: Work
    transfer_id: int
    prefill: str
    prefill_epoch: int


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Run this prompt once the decode node has granted room for it.

    With `decode` equal to the receiver's own id the sequence stays and decodes there.
    `sources` have leading blocks of the prompt, the best to fetch from first.
    """

    work: Work
    transfer_id: int
    decode: str
    decode_epoch: int
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Abort:
    """Drop these sequences, in this or an earlier attempt, wherever they stand."""

    request_id: str
    indices: tuple[int, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """All tokens of one step for one gateway, as columns (one row a token).

    `finish` and `logprobs` are sparse: row number to value. `prefilled` has, for requests whose
    first tokens are in here, the seconds of fetching and of computing their prompts."""

    request_ids: list[str]
    indices: list[int]
    attempts: list[int]
    positions: list[int]
    tokens: list[int]
    finish: dict[int, FinishReason] = field(default_factory=dict)
    logprobs: dict[int, tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=dict)
    node: str = ""
    prefilled: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def pack(cls, events: Iterable[TokenEvent], node: str = "") -> Tokens:
        batch = cls([], [], [], [], [], node=node)
        for row, event in enumerate(events):
            batch.request_ids.append(event.request_id)
            batch.indices.append(event.index)
            batch.attempts.append(event.attempt)
            batch.positions.append(event.position)
            batch.tokens.append(event.token)
            if event.finish is not None:
                batch.finish[row] = event.finish
            if event.logprob is not None:
                batch.logprobs[row] = (event.logprob, event.top)
        return batch

    def rows(self) -> Iterator[TokenEvent]:
        columns = (self.request_ids, self.indices, self.attempts, self.positions, self.tokens)
        for row, name_and_place in enumerate(zip(*columns, strict=True)):
            logprob, top = self.logprobs.get(row, (None, ()))
            yield TokenEvent(*name_and_place, self.finish.get(row), logprob, tuple(top))


@dataclass(frozen=True, slots=True)
class Started:
    """The sequences of a work begin to decode: what it took to bring their KV here.

    `moved_bytes` came from the prefill node, `early_bytes` of them before it had finished
    the prompt; `cached_tokens` were here already. `wait_s` is how long the sequences then
    waited for the rest. All zero for a prompt prefilled on the node it decodes on.
    """

    request_id: str
    indices: tuple[int, ...]
    attempt: int
    moved_bytes: int = 0
    early_bytes: int = 0
    cached_tokens: int = 0
    wait_s: float = 0.0


# ------------------------------------------------------------------ the hand-off of blocks
@dataclass(frozen=True, slots=True)
class Granted:
    """Room is reserved. The first `num_cached` blocks of the prompt are already there;
    `blocks` are the receiver's blocks for the rest, in order."""

    transfer_id: int
    num_cached: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """The prompt is computed. One (index, first token) for every sequence that goes on."""

    transfer_id: int
    tokens: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Renew:
    """The sender still works on these transfers: extend their leases.

    For those in `ungranted` it has seen no grant yet, so one that was lost is sent again.
    """

    transfer_ids: tuple[int, ...]
    ungranted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AbortTransfer:
    """The receiver does not want (or does not know) this transfer: stop writing, say `Stopped`."""

    transfer_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The sender writes no more: the receiver may reuse the pages. Also a sender's own abort."""

    transfer_id: int


# ------------------------------------------------------------------ blocks that outlive requests
@dataclass(frozen=True, slots=True)
class BlockEvents:
    """What changed in one tier of a holder since its message before this one.

    `seq` counts a holder's messages of one epoch from 1: a gap means that one was lost.
    `removed` and `stored` are the first 8 bytes of each block's key, packed; removals come
    first. `reset` says: forget all you knew of me, what follows is everything I have.
    """

    seq: int
    reset: bool
    tier: Tier
    stored: bytes
    removed: bytes = b""


@dataclass(frozen=True, slots=True)
class SyncBlocks:
    """The coordinator has missed events: report everything again."""


@dataclass(frozen=True, slots=True)
class UsePool:
    """Put your blocks here from now on; an empty id means nowhere."""

    id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Put:
    """Blocks that a node has to give. `keys` are 32 bytes each, packed, in prompt order.

    `epoch` is the sender's own, as in `Fetch`."""

    transfer_id: int
    epoch: int
    keys: bytes


@dataclass(frozen=True, slots=True)
class PutGranted:
    """The pool takes the blocks at these places of the `Put`, into these blocks of its own.

    Empty when it has them all or no room: then the transfer is over."""

    transfer_id: int
    places: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Write the blocks of these keys (32 bytes each, packed) into these blocks of mine.

    The holder writes the leading ones it has; if that is not all of them, it says `Stopped`
    after the last. Transfer id and epoch are those of the receiver, who asks.
    """

    transfer_id: int
    epoch: int
    keys: bytes
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Beacon:
    """No message: its number is the next one's, so that lost ones are missed. Mailboxes' own.

    `oldest` is the number of the first message that can still be sent again."""

    oldest: int


@dataclass(frozen=True, slots=True)
class Resend:
    """These messages of yours have not arrived: send those from `first` on again. Mailboxes' own.

    `connection` is that of the messages."""

    connection: int
    first: int


Message = (
    NodeHello | GatewayHello | Welcome | Heartbeat | Snapshot | Peers | PeerLost | CellStatus
    | Submit | Admitted | Rejected | Interrupted | Cancel | Finished
    | Reserve | StartPrefill | Abort | Tokens
    | Granted | PrefillDone | Renew | AbortTransfer | Stopped | Started
    | BlockEvents | SyncBlocks | UsePool | Put | PutGranted | Fetch
    | Beacon | Resend
    | SetRole | ChangeRole | RoleChanged | Drain | Draining
    | Ongoing | Verify
    | Scale | Scaling
)  # fmt: skip

# The number of a message on the wire. Append only.
KINDS: dict[int, type] = dict(
    enumerate(
        (
            NodeHello, GatewayHello, Welcome, Heartbeat, Snapshot, Peers, PeerLost, CellStatus,
            Submit, Admitted, Rejected, Interrupted, Cancel, Finished,
            Reserve, StartPrefill, Abort, Tokens,
            Granted, PrefillDone, Renew, AbortTransfer, Stopped, Started,
            BlockEvents, SyncBlocks, UsePool, Put, PutGranted, Fetch,
            Beacon, Resend,
            SetRole, ChangeRole, RoleChanged, Drain, Draining,
            Ongoing, Verify,
            Scale, Scaling,
        ),
        start=1,
    )
)  # fmt: skip
