"""The prefill half of a node: prompts in, first tokens and pushed blocks out. Pure.

A prompt that will decode elsewhere waits until that node has granted room for it, then runs
in chunks; the blocks each chunk completes are pushed while the next one computes. A prompt
that will decode here waits for the same grant from the decode half and hands its blocks
over without moving them. Leading blocks that others have are fetched meanwhile, where that is
predicted to be faster than computing them; finished ones are put into the pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import TypeVar

from kvstore.blocks import BlockPool
from kvstore.fetch import Fetcher
from kvstore.table import num_blocks
from kvstore.transfer import OutgoingStatus, OutgoingTransfer
from kvstore.transport.events import Pushed
from pd.messages import (
    Abort,
    AbortTransfer,
    Granted,
    Interrupted,
    PrefillDone,
    Renew,
    StartPrefill,
    Stopped,
)
from pd.outbox import CancelPush, Outbox
from pd.policies.order import OrderPolicy
from pd.types import PrefillChunk, Sampled, Sequence, TokenEvent, Work
from prefill_node.scheduler import PrefillScheduler, PrefillTask

T = TypeVar("T")
_REMEMBERED = 4096  # grants and aborts that came before their StartPrefill


class PrefillPhase:
    """Everything a node does for prompts until their last block has left.

    `reserve_local` asks the decode half for room for a prompt that stays here (it calls
    `ready` once there is), `start_local` hands it the prompt's sequences when computed.
    `fetcher` brings blocks from elsewhere, `compute_s` predicts how long so many tokens take to
    compute; `publish` is given the blocks of computed prompts.
    """

    def __init__(
        self,
        node_id: str,
        pool: BlockPool,
        policy: OrderPolicy,
        max_num_seqs: int,
        keys_of: Callable[[Work], list[bytes]],
        outbox: Outbox,
        reserve_local: Callable[[PrefillTask], None],
        start_local: Callable[[PrefillTask, list[Sequence], float], None],
        fetcher: Fetcher,
        compute_s: Callable[[int], float],
        publish: Callable[[list[bytes], list[int]], None],
    ) -> None:
        self.node_id = node_id
        self.pool = pool
        self.scheduler = PrefillScheduler(pool, policy, max_num_seqs)
        self.tasks: dict[int, PrefillTask] = {}
        self._unscheduled_tokens = 0  # of prompts that wait for decode room or for a fetch
        self._by_request: dict[str, set[int]] = {}
        self._in_flight: list[PrefillTask] = []
        self._early_grants: OrderedDict[int, Granted] = OrderedDict()
        self._early_aborts: OrderedDict[int, None] = OrderedDict()
        self._keys_of = keys_of
        self._outbox = outbox
        self._reserve_local = reserve_local
        self._start_local = start_local
        self._fetcher = fetcher
        self._compute_s = compute_s
        self._publish = publish

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that this node has yet to compute."""
        return self.scheduler.remaining_tokens + self._unscheduled_tokens

    # -------------------------------------------------------------- messages
    def start(self, message: StartPrefill, now: float, *, fetch: bool = True) -> None:
        work, transfer_id = message.work, message.transfer_id
        if transfer_id in self._early_aborts or transfer_id in self.tasks:
            return
        hashes = self._keys_of(work)
        sources = list(message.sources) if fetch else []
        task = PrefillTask(work, transfer_id, now, hashes, sources=sources)
        self.tasks[transfer_id] = task
        self._by_request.setdefault(work.request.request_id, set()).add(transfer_id)
        task.counted = self.scheduler.to_compute(task)
        self._unscheduled_tokens += task.counted
        if message.decode == self.node_id:
            self._fetch(task, now)
            if not task.fetching:
                self._reserve_local(task)
            return
        self._fetch(task, now)
        task.outgoing = OutgoingTransfer(transfer_id, message.decode, message.decode_epoch)
        grant = self._early_grants.pop(transfer_id, None)
        if grant is not None:
            self.granted(message.decode, grant)

    def granted(self, sender: str, message: Granted) -> None:
        task = self.tasks.get(message.transfer_id)
        if task is None:
            # The grant overtook the coordinator's order, or comes after an abort.
            if message.transfer_id not in self._early_aborts:
                _remember(self._early_grants, message.transfer_id, message)
            return
        outgoing = task.outgoing
        if outgoing is None or outgoing.receiver != sender or not _ungranted(outgoing):
            return
        expected = num_blocks(task.num_tokens, self.pool.block_size)
        if message.num_cached + len(message.blocks) != expected:
            self._interrupt(task, f"{sender} granted room for another prompt")
            self._cancel(task)
            return
        outgoing.granted(message.num_cached, message.blocks)
        self.ready(task)

    def ready(self, task: PrefillTask) -> None:
        """There are blocks for this prompt where it will decode: it may run."""
        task.granted = True
        self._schedule(task)

    def _schedule(self, task: PrefillTask) -> None:
        if task.granted and not task.fetching:
            task.scheduled = True
            self._uncount(task)
            self.scheduler.add(task)

    def _uncount(self, task: PrefillTask) -> None:
        """It is no longer one of those that wait to be scheduled."""
        self._unscheduled_tokens -= task.counted
        task.counted = 0

    # -------------------------------------------------------------- blocks that others have
    def _fetch(self, task: PrefillTask, now: float) -> None:
        """Fetch leading blocks that this node lacks, if a source has them and is faster."""
        keys = task.reusable(self.pool.block_size)
        num_here = self.pool.peek(keys)
        if num_here == len(keys):
            return
        fetching = self._fetcher.find(keys[num_here])
        while fetching is None and task.sources:
            source = task.sources.pop(0)
            lacking = keys[num_here : source.num_blocks]
            for i, key in enumerate(lacking):
                if self._fetcher.find(key) is not None:
                    del lacking[i:]
                    break
            if not lacking:
                continue
            num_slow = min(len(lacking), source.num_slow)
            takes_s = self._fetcher.costs.expected(len(lacking) - num_slow, num_slow, now)
            # What waits here already is computed while blocks come.
            before = self.waiting_tokens - task.counted
            if takes_s < self._compute_s(before + len(lacking) * self.pool.block_size):
                fetching = self._fetcher.start(source, lacking, num_slow, now)
        if fetching is not None:
            task.fetching = True
            task.fetching_since = now
            fetching.waiting.append(lambda then: self._fetched(task, then))

    def _fetched(self, task: PrefillTask, now: float) -> None:
        """What was fetched is in the cache now; another source may have what follows it."""
        task.fetching = False
        task.fetch_s += now - task.fetching_since
        if task.cancelled:
            return
        self._fetch(task, now)
        if task.fetching:
            return
        if task.outgoing is None and not task.granted:
            self._reserve_local(task)
        else:
            self._schedule(task)

    def abort(self, message: Abort) -> None:
        for transfer_id in list(self._by_request.get(message.request_id, ())):
            task = self.tasks[transfer_id]
            if task.work.attempt <= message.attempt:
                task.dropped.update(set(message.indices).intersection(task.work.indices))
                if len(task.dropped) == len(task.work.indices):
                    self._cancel(task)

    def abort_transfer(self, sender: str, message: AbortTransfer) -> None:
        task = self.tasks.get(message.transfer_id)
        if task is None or task.outgoing is None:
            self._early_grants.pop(message.transfer_id, None)
            _remember(self._early_aborts, message.transfer_id, None)
            self._outbox.send(sender, Stopped(message.transfer_id))
        elif task.outgoing.receiver == sender:
            # Once everything was offered the decode node may have all of it and have forgotten
            # the transfer, or else interrupts the work itself.
            if not task.cancelled and task.num_remaining:
                self._interrupt(task, message.reason)
            self._cancel(task)

    def peer_lost(self, peer: str, epoch: int) -> None:
        """The decode node is gone; the coordinator tells the gateways what that interrupts."""
        for task in list(self.tasks.values()):
            outgoing = task.outgoing
            if outgoing and outgoing.is_to(peer, epoch):
                self._cancel(task)

    def works(self) -> list[Work]:
        """Everything that is here."""
        return [task.work for task in self.tasks.values()]

    def unstarted(self) -> list[Work]:
        """Prompts of which nothing was computed yet."""
        running = self.scheduler.running
        return [
            task.work
            for task in self.tasks.values()
            if not task.cancelled and task.num_remaining and task.transfer_id not in running
        ]

    def renew(self) -> None:
        """Tell every decode node which of its reservations are still wanted."""
        peers: dict[str, tuple[list[int], list[int]]] = {}
        for transfer_id, task in self.tasks.items():
            if task.outgoing is not None and not task.cancelled:
                renewed, ungranted = peers.setdefault(task.outgoing.receiver, ([], []))
                renewed.append(transfer_id)
                if _ungranted(task.outgoing):
                    ungranted.append(transfer_id)
        for peer, (renewed, ungranted) in peers.items():
            self._outbox.send(peer, Renew(tuple(renewed), tuple(ungranted)))

    def pushed(self, event: Pushed) -> None:
        task = self.tasks.get(event.transfer_id)
        if task is None or task.outgoing is None:
            return
        task.outgoing.pushed(event.first, event.count, event.ok)
        if not event.ok and not task.cancelled:
            self._interrupt(task, f"blocks could not be sent to {task.outgoing.receiver}")
            self._cancel(task)
        else:
            self._settle(task)

    # -------------------------------------------------------------- steps
    def plan(self, now: float, budget: int) -> tuple[PrefillChunk, ...]:
        if not len(self.scheduler):
            return ()
        chunks = self.scheduler.plan(now, budget)
        # A step's chunks are in the order of their tasks, so commit can match them up.
        by_lead = {id(task.lead): task for task in self.scheduler.running.values()}
        self._in_flight = [by_lead[id(chunk.seq)] for chunk in chunks]
        for task in self._in_flight:
            if task.outgoing is not None:
                self._push_complete(task, task.outgoing)  # a cached prefix leaves at once
            task.in_flight = True
            if task.computing_since is None:
                task.computing_since = now
        return chunks

    def commit(self, chunks: Seq[PrefillChunk], samples: Seq[Sampled], now: float) -> None:
        drawn = iter(samples)
        tasks, self._in_flight = self._in_flight, []
        for task, chunk in zip(tasks, chunks, strict=True):
            first = [(seq, next(drawn)) for seq in chunk.sample]
            task.in_flight = False
            if task.cancelled:
                self._settle(task)
                continue
            done = self.scheduler.commit(task, chunk)
            going_on = self._deliver(task, first, now)
            if task.outgoing is not None:
                self._push(task, task.outgoing, going_on if done else None)
            elif done:
                self._publish(task.hashes, task.lead.blocks)
                self._forget(task)
                self._start_local(task, going_on, now)

    def _deliver(
        self, task: PrefillTask, first: list[tuple[Sequence, Sampled]], now: float
    ) -> list[Sequence]:
        """Send first tokens to the gateway; the sequences that go on after theirs."""
        going_on: list[Sequence] = []
        if first and task.computing_since is not None:
            request = task.work.request
            compute_s = now - task.computing_since
            self._outbox.prefilled(request.gateway, request.request_id, task.fetch_s, compute_s)
        for seq, sampled in first:
            if seq.index in task.dropped:
                continue
            reason = seq.append(sampled.token)
            if reason is None:
                going_on.append(seq)
            request = seq.request
            self._outbox.token(
                request.gateway,
                TokenEvent(
                    request.request_id,
                    seq.index,
                    seq.attempt,
                    seq.num_output - 1,
                    sampled.token,
                    reason,
                    sampled.logprob,
                    sampled.top,
                ),
            )
        return going_on

    def _push(
        self, task: PrefillTask, outgoing: OutgoingTransfer, going_on: list[Sequence] | None
    ) -> None:
        """Push what is complete; `going_on` is None until the whole prompt is."""
        if going_on is None:
            self._push_complete(task, outgoing)
            return
        self._publish(task.hashes, task.lead.blocks)
        firsts = tuple((seq.index, seq.tokens[-1]) for seq in going_on)
        self._outbox.send(outgoing.receiver, PrefillDone(task.transfer_id, firsts))
        if going_on:
            push = outgoing.offer(task.lead.blocks, final=True)
            if push is not None:
                self._outbox.add(push)
            self._settle(task)
        else:  # every sequence ended with its first token: the room is not needed
            self._cancel(task)

    def _push_complete(self, task: PrefillTask, outgoing: OutgoingTransfer) -> None:
        num_complete = task.lead.num_computed // self.pool.block_size
        push = outgoing.offer(task.lead.blocks[:num_complete], final=False)
        if push is not None:
            self._outbox.add(push)

    # -------------------------------------------------------------- endings
    def _interrupt(self, task: PrefillTask, reason: str) -> None:
        request = task.work.request
        self._outbox.send(
            request.gateway,
            Interrupted(request.request_id, task.work.indices, task.work.attempt, reason),
        )

    def _cancel(self, task: PrefillTask) -> None:
        if not task.cancelled:
            task.cancelled = True
            if task.scheduled:
                self.scheduler.remove(task)
            else:
                self._uncount(task)
            if task.outgoing is not None:
                task.outgoing.abort()
                self._outbox.add(CancelPush(task.transfer_id))
        self._settle(task)

    def _settle(self, task: PrefillTask) -> None:
        """Let go of the blocks once neither a step nor a push can touch them."""
        outgoing = task.outgoing
        if task.in_flight or (outgoing is not None and not outgoing.quiet):
            return
        if task.cancelled and outgoing is not None:
            self._outbox.send(outgoing.receiver, Stopped(task.transfer_id))
        self._forget(task)
        self.pool.release(task.lead.blocks)
        task.lead.blocks = []

    def _forget(self, task: PrefillTask) -> None:
        del self.tasks[task.transfer_id]
        request_id = task.work.request.request_id
        remaining = self._by_request[request_id]
        remaining.discard(task.transfer_id)
        if not remaining:
            del self._by_request[request_id]


def _ungranted(outgoing: OutgoingTransfer) -> bool:
    return outgoing.status is OutgoingStatus.WAITING


def _remember(memory: OrderedDict[int, T], key: int, value: T) -> None:
    memory[key] = value
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
