"""The decode half of a node: room granted, blocks verified, tokens out. Pure.

A hand-off passes through three places: the queue of those waiting for room, the table of
those whose blocks are on their way, and the batch. Pages granted to a sender stay untouched
until it has finished, has said `Stopped`, or is known to be gone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from decode_node.handoff import Handoff
from decode_node.scheduler import DecodeScheduler
from kvstore.blocks import BlockPool
from kvstore.table import acquire, share
from kvstore.transfer import IncomingStatus, IncomingTransfer
from kvstore.transport.events import Arrived
from pd.errors import TransferError
from pd.messages import (
    Abort,
    AbortTransfer,
    Granted,
    Interrupted,
    PrefillDone,
    Renew,
    Reserve,
    Stopped,
)
from pd.outbox import Expect, Forget, Outbox
from pd.policies.fairness import waiting_queue
from pd.policies.order import OrderPolicy, WaitingQueue
from pd.types import BatchPlan, Request, Sampled, Sequence, Work
from prefill_node.scheduler import PrefillTask

_SMOOTHING = 0.1  # weight of the newest hand-off in the mean wait for a first step
_KEPT_SHARE = 1 / 16  # of sequences and blocks, for others than who has most of them


class DecodePhase:
    """Everything a node does for sequences from their reservation to their last token.

    `on_local_room` hears of prompts prefilled on this node that now have their blocks;
    `publish` is given the blocks of sequences that leave.
    """

    def __init__(
        self,
        node_id: str,
        pool: BlockPool,
        policy: OrderPolicy,
        max_num_seqs: int,
        watermark: float,
        lease_s: float,
        root_of: Callable[[Request], bytes],
        keys_of: Callable[[Work], list[bytes]],
        outbox: Outbox,
        on_local_room: Callable[[PrefillTask], None],
        publish: Callable[[list[bytes], list[int]], None] | None = None,
        block_bytes: int = 0,
    ) -> None:
        self.node_id = node_id
        self.pool = pool
        self.lease_s = lease_s
        self._watermark_blocks = int(watermark * pool.num_blocks)
        self.scheduler = DecodeScheduler(pool, max_num_seqs, publish)
        self.queue: WaitingQueue[Handoff] = waiting_queue(policy)
        self._fair = policy.fairness != "none"
        self.handoffs: dict[int, Handoff] = {}  # queued, granted and draining ones
        self.reserving_tokens = 0  # context of all of them
        self.handoff_s = 0.0  # smoothed: from a first token's coming to its sequence's first step
        self._started: list[float] = []  # when those came whose sequences no step has had yet
        self._by_request: dict[str, set[int]] = {}
        self.cache_hit_tokens = 0  # of prompts prefilled on this node
        self.leaving = ""  # if not empty, why what runs is to go on elsewhere
        self._incoming_seqs = 0  # sequences of granted hand-offs, not yet running
        self._root_of = root_of
        self._keys_of = keys_of
        self._outbox = outbox
        self._on_local_room = on_local_room
        self._block_bytes = block_bytes

    # -------------------------------------------------------------- asking for room
    def reserve(self, message: Reserve, now: float) -> None:
        if message.transfer_id in self.handoffs:
            return
        work, hashes = message.work, self._keys_of(message.work)
        handoff = Handoff(work, message.transfer_id, message.prefill, message.prefill_epoch, hashes)
        self._enqueue(handoff, now)

    def reserve_local(self, task: PrefillTask) -> None:
        handoff = Handoff(
            task.work, task.transfer_id, self.node_id, 0, task.hashes, task=task,
            dropped=set(task.dropped),  # some may have been while its blocks were fetched
        )  # fmt: skip
        self._enqueue(handoff, task.arrived)

    def _enqueue(self, handoff: Handoff, now: float) -> None:
        self.handoffs[handoff.transfer_id] = handoff
        self.reserving_tokens += handoff.work.num_tokens
        request_id = handoff.work.request.request_id
        self._by_request.setdefault(request_id, set()).add(handoff.transfer_id)
        self.queue.push(handoff, handoff.work, now)

    def grant(self, now: float) -> None:
        """Reserve blocks for waiting hand-offs, in policy order, while there is room.

        Room means the prompt's blocks and one more to grow into for every sequence that
        runs or is coming (the watermark at least), so that what is granted now does not
        preempt what runs already.
        """
        while (handoff := self.queue.peek(now)) is not None:
            active = len(self.scheduler) + self._incoming_seqs
            num_seqs = len(handoff.work.indices)
            seats, blocks = self._kept_from(handoff.work.request.tenant)
            if active and active + num_seqs > self.scheduler.max_num_seqs - seats:
                return
            room = acquire(
                self.pool,
                handoff.hashes,
                handoff.work.num_tokens,
                spare=max(active + num_seqs, self._watermark_blocks) + blocks if active else 0,
                compute=handoff.task is not None,
            )
            if room is None:
                return
            self.queue.take(handoff, handoff.work.num_tokens)
            handoff.table, handoff.num_cached = room
            self._incoming_seqs += num_seqs
            if handoff.task is not None:
                self._granted_local(handoff, handoff.task)
            else:
                self._granted(handoff, now)

    def _kept_from(self, tenant: str) -> tuple[int, int]:
        """Sequences and blocks that a tenant may not fill up: with more than half of the batch
        its own, it leaves some to others, who would else wait for one of its outputs to end."""
        scheduler = self.scheduler
        if not self.queue.shared or 2 * scheduler.num_of_tenant[tenant] <= len(scheduler):
            return 0, 0
        seats = int(_KEPT_SHARE * scheduler.max_num_seqs)
        return seats, int(_KEPT_SHARE * self.pool.num_blocks)

    def _granted_local(self, handoff: Handoff, task: PrefillTask) -> None:
        lead = task.lead
        lead.blocks = handoff.table
        lead.table_version += 1
        lead.num_computed = handoff.num_cached * self.pool.block_size
        self.cache_hit_tokens += lead.num_computed
        self._on_local_room(task)

    def _granted(self, handoff: Handoff, now: float) -> None:
        missing = handoff.table[handoff.num_cached :]
        handoff.transfer = IncomingTransfer(
            handoff.transfer_id, handoff.sender, handoff.sender_epoch, missing, now + self.lease_s
        )
        if missing:
            self._outbox.add(
                Expect(handoff.transfer_id, handoff.sender, handoff.sender_epoch, tuple(missing))
            )
        self._send_grant(handoff)

    def _send_grant(self, handoff: Handoff) -> None:
        missing = tuple(handoff.table[handoff.num_cached :])
        grant = Granted(handoff.transfer_id, handoff.num_cached, missing)
        self._outbox.send(handoff.sender, grant)

    # -------------------------------------------------------------- what senders say
    def arrived(self, event: Arrived, now: float) -> None:
        handoff = self.handoffs.get(event.transfer_id)
        if handoff is None or handoff.transfer is None or not handoff.receiving:
            return
        try:
            handoff.transfer.arrived(event.first, event.count, event.ok)
        except TransferError as error:
            self._fail(handoff, str(error))
            return
        self._start_if_complete(handoff, now)

    def prefill_done(self, sender: str, message: PrefillDone, now: float) -> None:
        handoff = self._from(sender, message.transfer_id)
        if handoff is None or handoff.first is not None or handoff.transfer is None:
            return
        handoff.first = dict(message.tokens)
        handoff.first_at = now
        handoff.early_blocks = len(handoff.transfer.blocks) - handoff.transfer.num_missing
        self._start_if_complete(handoff, now)

    def renew(self, sender: str, message: Renew, now: float) -> None:
        ungranted = set(message.ungranted)
        for transfer_id in message.transfer_ids:
            handoff = self._from(sender, transfer_id)
            if handoff is None:
                unknown = AbortTransfer(transfer_id, "the decode node does not know this transfer")
                self._outbox.send(sender, unknown)
            elif handoff.transfer is not None and handoff.receiving:
                handoff.transfer.renew(now + self.lease_s)
                if transfer_id in ungranted:
                    self._send_grant(handoff)

    def stopped(self, sender: str, message: Stopped) -> None:
        handoff = self._from(sender, message.transfer_id)
        if handoff is None or handoff.transfer is None:
            return
        if handoff.receiving and handoff.first != {}:  # {}: nothing goes on, nothing is lost
            self._interrupt(handoff, f"the hand-off was given up by {sender}")
        self._close(handoff)

    def peer_lost(self, peer: str, epoch: int) -> None:
        for handoff in list(self.handoffs.values()):
            if handoff.task or handoff.sender != peer or handoff.sender_epoch > epoch:
                continue
            if handoff.transfer is None:
                self.queue.remove(handoff)
                self._interrupt(handoff, f"prefill node {peer} was lost")
                self._forget(handoff)
                continue
            if handoff.receiving:
                self._interrupt(handoff, f"prefill node {peer} was lost")
            self._close(handoff)

    def abort(self, message: Abort) -> None:
        for index in message.indices:
            seq = self.scheduler.running.get((message.request_id, index))
            if seq is not None and seq.attempt <= message.attempt:
                self.scheduler.remove(seq)
        for transfer_id in list(self._by_request.get(message.request_id, ())):
            handoff = self.handoffs[transfer_id]
            if handoff.work.attempt > message.attempt:
                continue
            handoff.dropped.update(set(message.indices).intersection(handoff.work.indices))
            if handoff.num_live:
                continue
            if self.queue.remove(handoff):
                self._forget(handoff)
            elif handoff.task is not None:
                self._close_local(handoff)
            else:
                self._cancel(handoff, "aborted")

    def works(self) -> list[Work]:
        """Everything that is here or on its way."""
        running = [
            Work(seq.request, (seq.index,), (), seq.attempt)
            for seq in self.scheduler.running.values()
        ]
        return [*running, *(handoff.work for handoff in self.handoffs.values())]

    def tick(self, now: float) -> None:
        """End leases that ran out; ask again where a sender's `Stopped` is overdue."""
        if not self.handoffs:
            return
        for handoff in list(self.handoffs.values()):
            transfer = handoff.transfer
            if transfer is None:
                continue
            if transfer.expired(now):
                self._fail(handoff, f"{handoff.sender} went silent for {self.lease_s:g} s")
            if transfer.status is IncomingStatus.DRAINING and now >= handoff.asked_to_stop:
                handoff.asked_to_stop = now + self.lease_s
                stop = AbortTransfer(handoff.transfer_id, "given up by the decode node")
                self._outbox.send(handoff.sender, stop)

    # -------------------------------------------------------------- steps
    def start_local(self, task: PrefillTask, going_on: list[Sequence], now: float) -> None:
        """A prompt prefilled here is computed: its blocks stay, its sequences run on."""
        handoff = self.handoffs[task.transfer_id]
        self._begin(handoff, going_on, now)

    def plan(self, now: float) -> BatchPlan:
        if self.leaving:
            for seq in tuple(self.scheduler.running.values()):
                self.scheduler.remove(seq)
                self._interrupt_sequence(seq, self.leaving)
        for first_at in self._started:
            waited_s = now - first_at
            old = self.handoff_s or waited_s
            self.handoff_s = old + _SMOOTHING * (waited_s - old)
        self._started.clear()
        decodes, copies, preempted = self.scheduler.plan()
        for seq in preempted:
            self._interrupt_sequence(seq, "preempted")
        return BatchPlan(decodes=decodes, copies=copies)

    def commit(self, decodes: Seq[Sequence], samples: Seq[Sampled], times: int = 1) -> int:
        """The step has run, `times` in a row; how many tokens it drew."""
        drawn = self.scheduler.commit(decodes, samples, times)
        if self._fair:
            for seq, _, _ in drawn:
                self.queue.generated(seq.request, times)
        self._outbox.drawn(drawn, times)
        return len(drawn) * times

    # -------------------------------------------------------------- inside
    def _start_if_complete(self, handoff: Handoff, now: float) -> None:
        transfer = handoff.transfer
        if transfer is None or not handoff.first or transfer.status is not IncomingStatus.COMPLETE:
            return
        self._outbox.add(Forget(handoff.transfer_id))
        self.pool.register_all(handoff.table, handoff.hashes)
        seqs = []
        for index, token in handoff.first.items():
            if index not in handoff.dropped:
                seq = Sequence(handoff.work, index)
                seq.append(token)
                seqs.append(seq)
        self._begin(handoff, seqs, handoff.first_at)
        if seqs:
            self._started.append(handoff.first_at)
            report = handoff.report(self.pool.block_size, self._block_bytes, now)
            self._outbox.send(handoff.work.request.gateway, report)

    def _begin(self, handoff: Handoff, seqs: list[Sequence], first_s: float) -> None:
        """Decode from now on; their newest tokens were drawn at `first_s`."""
        root = self._root_of(handoff.work.request)
        seqs = [seq for seq in seqs if self._supersedes(seq)]
        share(self.pool, handoff.table, seqs)
        for seq in seqs:
            seq.num_computed = handoff.work.num_tokens
            tpot_s = seq.request.slo.tpot_s or 0.0
            seq.paced_from_s = first_s - (seq.num_output - 1) * tpot_s
            seq.hashes = [root, *handoff.hashes]
            self.scheduler.start(seq, shared=len(seqs) > 1)
        self._incoming_seqs -= len(handoff.work.indices)
        self._forget(handoff)

    def _supersedes(self, seq: Sequence) -> bool:
        """Make way for a newer attempt at a sequence whose `Abort` was lost on its way here."""
        known = self.scheduler.running.get(seq.key)
        if known is None:
            return True
        if known.attempt > seq.attempt:
            return False
        self.scheduler.remove(known)
        return True

    def _fail(self, handoff: Handoff, reason: str) -> None:
        self._interrupt(handoff, reason)
        self._cancel(handoff, reason)

    def _cancel(self, handoff: Handoff, reason: str) -> None:
        """Give up a granted hand-off: unless all has come, its pages wait for `Stopped`."""
        transfer = handoff.transfer
        if transfer is None or not handoff.receiving:
            return
        transfer.abort()
        self._outbox.add(Forget(handoff.transfer_id))
        self._outbox.send(handoff.sender, AbortTransfer(handoff.transfer_id, reason))
        if transfer.quiet:
            self._close(handoff)

    def _close(self, handoff: Handoff) -> None:
        """Nobody writes into the pages any more: they go back."""
        if handoff.transfer is not None:
            handoff.transfer.stopped()
        self._outbox.add(Forget(handoff.transfer_id))
        self.pool.release(handoff.table)
        self._incoming_seqs -= len(handoff.work.indices)
        self._forget(handoff)

    def _close_local(self, handoff: Handoff) -> None:
        """The prefill half releases a cancelled task's blocks when its step is over."""
        self._incoming_seqs -= len(handoff.work.indices)
        self._forget(handoff)

    def _forget(self, handoff: Handoff) -> None:
        del self.handoffs[handoff.transfer_id]
        self.reserving_tokens -= handoff.work.num_tokens
        request_id = handoff.work.request.request_id
        remaining = self._by_request[request_id]
        remaining.discard(handoff.transfer_id)
        if not remaining:
            del self._by_request[request_id]

    def _from(self, sender: str, transfer_id: int) -> Handoff | None:
        handoff = self.handoffs.get(transfer_id)
        return handoff if handoff is not None and handoff.sender == sender else None

    def _interrupt_sequence(self, seq: Sequence, reason: str) -> None:
        request = seq.request
        interrupted = Interrupted(request.request_id, (seq.index,), seq.attempt, reason)
        self._outbox.send(request.gateway, interrupted)

    def _interrupt(self, handoff: Handoff, reason: str) -> None:
        message = handoff.interrupted(reason)
        if message is not None:
            self._outbox.send(handoff.work.request.gateway, message)
