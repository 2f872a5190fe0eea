"""A node's brain: messages, transfer events and step results in; plans and effects out. Pure.

Every node has both halves, prefill and decode, over one block pool. Its role only says which
work the coordinator sends it: a mixed node gets prompts whose decode node is itself, so its
prefill chunks ride on its decode steps. The live runner and the simulator drive this same
object; nothing here reads a clock or knows a socket.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from decode_node.phase import DecodePhase
from kvstore.blocks import BlockPool
from kvstore.fetch import BlockServer, Fetcher
from kvstore.prefix import KeySpace
from kvstore.publish import Publisher
from kvstore.transport.events import Arrived, Pushed, TransferEvent
from pd.messages import (
    Abort,
    AbortTransfer,
    Fetch,
    Granted,
    Heartbeat,
    Interrupted,
    Message,
    PeerLost,
    PrefillDone,
    PutGranted,
    Renew,
    Reserve,
    SetRole,
    StartPrefill,
    Stopped,
    SyncBlocks,
    UsePool,
    Verify,
)
from pd.outbox import Effect, Outbox
from pd.policies.chunk import chunk_tokens
from pd.policies.order import OrderPolicy
from pd.policies.steps import StepTimes
from pd.reporter import Reporter
from pd.types import BatchPlan, NodeSnapshot, Request, Role, Sampled, Work
from prefill_node.phase import PrefillPhase
from prefill_node.scheduler import PrefillTask

_SMOOTHING = 0.3  # weight of the newest step in the prefill rate
_OWN_ID = 1 << 62  # of transfers that a node asks for itself; the coordinator's are below
_MAX_PUT_SHARE = 0.25  # of a node's blocks that may be held for the pool to take


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What a step may hold and how long a node waits for others; times in seconds.

    `watermark` is the share of blocks kept free for growth whenever anything runs.
    """

    max_num_batched_tokens: int = 512
    max_num_seqs: int = 256
    adaptive_chunks: bool = True  # smaller ones where the targets of what decodes need it
    order: OrderPolicy = field(default_factory=OrderPolicy)
    watermark: float = 0.01
    lease_s: float = 10.0
    heartbeat_s: float = 0.5
    snapshot_s: float = 0.05  # at most one snapshot in this time
    fetch: bool = True  # what others have cached, where that is faster than computing it
    fetch_timeout_s: float = 2.0  # without a block of a fetch, before the prompt is computed


class NodeCore:
    """Both halves of a node, its pool and what it tells the coordinator."""

    def __init__(
        self,
        node_id: str,
        role: Role,
        pool: BlockPool,
        limits: NodeLimits,
        layout: int,
        block_bytes: int = 0,
        key_space: KeySpace = KeySpace(),  # noqa: B008
        outbox: Outbox | None = None,
        prefill_rate: float = 0.0,
    ) -> None:
        """What `pool` logs is reported to the coordinator. `prefill_rate` is what was measured
        before, in prompt tokens a second; 0 for nothing."""
        self.node_id = node_id
        self.role = role
        self._epoch = 0
        self.pool = pool
        self.limits = limits
        self.outbox = outbox or Outbox(node_id)
        self._layout = layout
        self._key_space = key_space
        self._reporter = Reporter(self.outbox, limits.heartbeat_s, limits.snapshot_s, pool.log)
        self._num_own_ids = 0
        self.publisher = Publisher(
            pool, self.outbox, self._own_id, timeout_s=limits.lease_s,
            max_blocks=int(_MAX_PUT_SHARE * pool.num_blocks),
        )  # fmt: skip
        self.fetcher = Fetcher(pool, self.outbox, self._own_id, timeout_s=limits.fetch_timeout_s)
        self.server = BlockServer(pool, self.outbox)
        self.decode = DecodePhase(
            node_id, pool, limits.order, limits.max_num_seqs, limits.watermark, limits.lease_s,
            self._root_of, self._keys_of, self.outbox, on_local_room=self._local_room,
            publish=self._publish, block_bytes=block_bytes,
        )  # fmt: skip
        self.prefill = PrefillPhase(
            node_id, pool, limits.order, limits.max_num_seqs, self._keys_of, self.outbox,
            reserve_local=self.decode.reserve_local, start_local=self.decode.start_local,
            fetcher=self.fetcher, compute_s=self._compute_s, publish=self._publish,
        )  # fmt: skip
        self._plan: BatchPlan | None = None
        self._planned_at = 0.0
        self._stuck_since: float | None = None  # prompts wait, and there is nothing to run
        self._last_transfer_id = 0
        self._steps = 0
        self._step_s = 0.0
        self._step_load = (0, 0, 0, 0)  # sequences, their context, prompt tokens and context
        self._steps_without = 0  # chunks, in a row
        self._planned_context = 0
        self._step_times = StepTimes()
        self._prefill_rate = prefill_rate
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._num_transfers = 0
        self._transferred_bytes = 0
        self._transfer_s = 0.0
        self._next_renewal = 0.0
        self._now = 0.0  # of the event being handled

    # -------------------------------------------------------------- events in
    def on_message(self, sender: str, message: Message, now: float) -> None:
        if isinstance(message, Heartbeat):
            return
        self._reporter.changed()
        self._now = now
        if isinstance(message, StartPrefill):
            self._last_transfer_id = max(self._last_transfer_id, message.transfer_id)
            self.prefill.start(message, now, fetch=self.limits.fetch)
        elif isinstance(message, Reserve):
            self._last_transfer_id = max(self._last_transfer_id, message.transfer_id)
            self.decode.reserve(message, now)
        elif isinstance(message, Granted):
            self.prefill.granted(sender, message)
        elif isinstance(message, PrefillDone):
            self.decode.prefill_done(sender, message, now)
        elif isinstance(message, Abort):
            self._abort(message)
        elif isinstance(message, Verify):
            self._verify(message)
        elif isinstance(message, AbortTransfer):
            self._abort_transfer(sender, message)
        elif isinstance(message, Stopped):
            if message.transfer_id in self.fetcher:
                self.fetcher.stopped(sender, message)
            else:
                self.decode.stopped(sender, message)
        elif isinstance(message, Renew):
            self.decode.renew(sender, message, now)
        elif isinstance(message, PeerLost):
            for part in (self.prefill, self.decode, self.publisher, self.fetcher, self.server):
                part.peer_lost(message.id, message.epoch)
            self._gateway_lost(message.id)
        elif isinstance(message, Fetch):
            self.server.fetch(sender, message)
        elif isinstance(message, PutGranted):
            self.publisher.granted(sender, message)
        elif isinstance(message, UsePool):
            self.publisher.use(message.id, message.epoch)
        elif isinstance(message, SetRole):
            self._set_role(message.role, migrate=message.migrate)
        elif isinstance(message, SyncBlocks):
            if self.pool.log is not None:
                self.pool.log.resync(("node", key) for key in self.pool.cached_keys())
        else:
            raise TypeError(f"a node has no use for {type(message).__name__} from {sender}")
        self.decode.grant(now)

    def on_transfer(self, event: TransferEvent, now: float) -> None:
        self._reporter.changed()
        if isinstance(event, Pushed):
            if event.transfer_id in self.publisher:
                self.publisher.pushed(event)
            elif event.transfer_id in self.server:
                self.server.pushed(event)
            else:
                self._handed_over(event)
        elif isinstance(event, Arrived):
            if event.transfer_id in self.fetcher:
                self.fetcher.arrived(event, now)
            else:
                self.decode.arrived(event, now)
        self.decode.grant(now)

    def tick(self, now: float) -> None:
        """Leases, renewals and heartbeats; call it on every turn of the loop, idle or not."""
        self._now = now
        self.decode.tick(now)
        self.fetcher.tick(now)
        self.publisher.tick(now)
        if now >= self._next_renewal:
            self._next_renewal = now + self.limits.lease_s / 4
            self.prefill.renew()
        if self._stuck_since is not None and now - self._stuck_since >= self.limits.lease_s:
            # All blocks are held for others' prompts, and those may wait for ours.
            self._stuck_since = None
            self._move_unstarted(f"{self.node_id} had no room for it")
        if self.epoch and self._reporter.due(now):
            self._reporter.report(self.snapshot(now), now)

    def next_tick(self) -> float:
        """When `tick` has something to do at the latest."""
        return min(self._next_renewal, self._reporter.next)

    # -------------------------------------------------------------- steps
    def plan(self, now: float) -> BatchPlan | None:
        """The next step, or None when there is nothing to run. Then `commit` before `plan`.

        Decoding sequences come first, one token each; prompts fill the token budget up.
        """
        if self._plan is not None:
            raise RuntimeError("a step is still in flight")
        self.decode.grant(now)
        plan = self.decode.plan(now)
        budget = self.limits.max_num_batched_tokens - len(plan.decodes)
        if self.limits.adaptive_chunks and plan.decodes and len(self.prefill.scheduler):
            context = self.decode.scheduler.num_tokens
            budget = chunk_tokens(
                plan.decodes, context, budget, self._step_times, now,
                start=self.prefill.scheduler.most_computed, steps_without=self._steps_without,
            )  # fmt: skip
        chunks = self.prefill.plan(now, budget) if budget > 0 else ()
        self._steps_without = 0 if chunks else self._steps_without + 1
        if chunks:
            plan = BatchPlan(chunks, plan.decodes, plan.copies)
        if not plan:
            if self._stuck_since is None and len(self.prefill.scheduler.waiting):
                self._stuck_since = now
            return None
        self._stuck_since = None
        self._plan, self._planned_at = plan, now
        self._planned_context = self.decode.scheduler.num_tokens
        return plan

    def steps_ahead(self) -> int:
        """How often the step in flight would be planned again just as it is, if this node heard
        of nothing meanwhile: 1 unless it only decodes. For who can foretell steps."""
        plan = self._plan
        if plan is None or plan.chunks or self.decode.leaving or len(self.prefill.scheduler):
            return 1
        return self.decode.scheduler.steps_ahead(plan.decodes)

    def commit(self, samples: Seq[Sampled], now: float, times: int = 1) -> None:
        """The step in flight is over and drew `samples` (chunks' first, then decodes'). It may
        have run several `times`, at most `steps_ahead`, and drawn the same in each."""
        plan, self._plan = self._plan, None
        if plan is None:
            raise RuntimeError("no step is in flight")
        self._reporter.changed()
        self._now = now
        self._steps += times
        self._step_s = (now - self._planned_at) / times
        num_first = len(samples) - len(plan.decodes)
        self.prefill.commit(plan.chunks, samples[:num_first], now)
        self._decode_tokens += self.decode.commit(plan.decodes, samples[num_first:], times)
        num_prefill = sum([chunk.num_tokens for chunk in plan.chunks])
        read = num_prefill + sum([chunk.start for chunk in plan.chunks])
        self._step_load = (len(plan.decodes), self._planned_context, num_prefill, read)
        if self.limits.adaptive_chunks and plan.decodes and self._step_s > 0.0:
            self._step_times.add(*self._step_load, self._step_s)
        if num_prefill and self._step_s > 0:
            self._prefill_tokens += num_prefill
            rate = num_prefill / self._step_s
            old = self._prefill_rate or rate
            # A few tokens take as long as many: they tell little of the rate of long prompts.
            full = min(1.0, num_prefill / self.limits.max_num_batched_tokens)
            self._prefill_rate = old + _SMOOTHING * full * (rate - old)
        self.decode.grant(now)

    @property
    def busy(self) -> bool:
        return self._plan is not None

    @property
    def at_rest(self) -> bool:
        """Nothing is under way and nothing is left to report: until this node hears of something,
        all that it would say is that it is alive."""
        return not (
            self._reporter.has_news or self.busy or self.prefill.tasks or self.decode.handoffs
            or self.decode.scheduler.running or len(self.publisher) or len(self.fetcher)
            or len(self.server)
        )  # fmt: skip

    # -------------------------------------------------------------- out
    def drain(self) -> list[Effect]:
        return self.outbox.drain()

    def snapshot(self, now: float) -> NodeSnapshot:
        prefill, decode = self.prefill, self.decode
        return NodeSnapshot(
            node_id=self.node_id,
            role=self.role,
            epoch=self.epoch,
            last_transfer_id=self._last_transfer_id,
            num_waiting=len(prefill.tasks),
            waiting_tokens=prefill.waiting_tokens,
            num_running=len(decode.scheduler),
            running_tokens=decode.scheduler.num_tokens,
            num_reserving=len(decode.handoffs),
            num_waiting_room=len(decode.queue),
            reserving_tokens=decode.reserving_tokens,
            handoff_s=decode.handoff_s,
            num_blocks=self.pool.num_blocks,
            free_blocks=self.pool.num_free,
            cached_blocks=self.pool.num_cached,
            steps=self._steps,
            step_s=self._step_s,
            step_seqs=self._step_load[0],
            step_context=self._step_load[1],
            step_prompt_tokens=self._step_load[2],
            step_prompt_context=self._step_load[3],
            busy_s=now - self._planned_at if self.busy else 0.0,
            prefill_rate=self._prefill_rate,
            num_transfers=self._num_transfers,
            transferred_bytes=self._transferred_bytes,
            transfer_s=self._transfer_s,
            preemptions=decode.scheduler.preemptions,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            cache_hit_tokens=prefill.scheduler.cache_hit_tokens + decode.cache_hit_tokens,
            fetched_tokens=self.fetcher.num_blocks * self.pool.block_size,
            fetch_s_per_block=self.fetcher.costs.fast,
            fetch_s_per_slow_block=self.fetcher.costs.slow,
            stored_blocks=self.publisher.num_put,
            served_blocks=self.server.num_blocks,
            dropped_blocks=self.publisher.num_skipped,
        )

    def check_idle(self) -> None:
        """Assert that nothing is held: for tests, once every request has ended."""
        assert not self.prefill.tasks, self.prefill.tasks
        assert not self.decode.handoffs, self.decode.handoffs
        assert not self.decode.scheduler.running, self.decode.scheduler.running
        assert not len(self.publisher), "blocks are still offered to the pool"
        assert not len(self.fetcher), "a fetch has not ended"
        assert not len(self.server), "blocks are still being served"
        assert self.pool.num_free == self.pool.num_blocks, (
            f"{self.pool.num_blocks - self.pool.num_free} blocks leaked on {self.node_id}"
        )
        assert self.prefill.scheduler.remaining_tokens == 0
        assert self.decode.scheduler.num_tokens == 0 and self.decode.reserving_tokens == 0
        self.pool.check()

    # -------------------------------------------------------------- inside
    @property
    def epoch(self) -> int:
        """Of this process in the cell; 0 until it has joined."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = self.publisher.epoch = self.fetcher.epoch = epoch

    def _abort(self, message: Abort) -> None:
        self.prefill.abort(message)
        self.decode.abort(message)

    def _verify(self, message: Verify) -> None:
        admitted = message.admitted
        here = {
            index
            for work in (*self.prefill.works(), *self.decode.works())
            if work.request.request_id == admitted.request_id and work.attempt >= admitted.attempt
            for index in work.indices
        }
        missing = tuple(index for index in admitted.indices if index not in here)
        if missing:
            reason = f"{self.node_id} never heard of it, or has ended it"
            self.outbox.send(
                message.gateway,
                Interrupted(admitted.request_id, missing, admitted.attempt, reason),
            )

    def _gateway_lost(self, peer: str) -> None:
        """If that was a gateway, nobody waits for what it asked for."""
        ended = {
            Abort(work.request.request_id, work.indices, work.attempt)
            for work in (*self.prefill.works(), *self.decode.works())
            if work.request.gateway == peer
        }
        for abort in sorted(ended, key=lambda each: (each.request_id, each.attempt)):
            self._abort(abort)

    def _set_role(self, role: Role, *, migrate: bool) -> None:
        """What comes from now on is the coordinator's business; what is here may have to go."""
        self.role = role
        reason = f"{self.node_id} becomes a {role} node"
        self.decode.leaving = reason if migrate and role == "prefill" else ""
        if migrate and role == "decode":
            self._move_unstarted(reason)

    def _move_unstarted(self, reason: str) -> None:
        """Prompts of which nothing was computed yet are to be computed elsewhere."""
        for work in self.prefill.unstarted():
            request = work.request
            interrupted = Interrupted(request.request_id, work.indices, work.attempt, reason)
            self.outbox.send(request.gateway, interrupted)
            self._abort(Abort(request.request_id, work.indices, work.attempt))

    def _own_id(self) -> int:
        """The id of a transfer that this node asks for: no other process makes the same."""
        self._num_own_ids += 1
        return _OWN_ID | self._epoch << 32 | self._num_own_ids

    def _compute_s(self, num_tokens: int) -> float:
        """How long these tokens take to compute; for ever, as long as that was never measured."""
        return num_tokens / self._prefill_rate if self._prefill_rate else float("inf")

    def _publish(self, keys: list[bytes], blocks: list[int]) -> None:
        if self.pool.prefix_cache:
            self.publisher.offer(keys, blocks, self._now)

    def _handed_over(self, event: Pushed) -> None:
        if event.ok:
            self._num_transfers += 1
            self._transferred_bytes += event.num_bytes
            self._transfer_s += event.seconds
        self.prefill.pushed(event)

    def _abort_transfer(self, sender: str, message: AbortTransfer) -> None:
        if message.transfer_id in self.publisher:
            self.publisher.abort_transfer(sender, message)
        elif message.transfer_id & _OWN_ID:
            self.server.abort_transfer(sender, message)
        else:
            self.prefill.abort_transfer(sender, message)

    def _local_room(self, task: PrefillTask) -> None:
        self.prefill.ready(task)  # the prefill half does not exist yet when decode is built

    def _root_of(self, request: Request) -> bytes:
        return self._key_space.root(self._layout, request.tenant, request.cache_salt)

    def _keys_of(self, work: Work) -> list[bytes]:
        root = self._root_of(work.request)
        return self._key_space.block_keys(work.tokens(), self.pool.block_size, root)
