"""A simulated node: the live `NodeCore`, and steps that take what the cost model says.

Decode steps of which nothing changes the batch are not simulated one by one. They begin as a run
of as many as the core foretells; when something is heard in the middle of one, the steps that are
over by then are committed together, and the one under way begins a new run.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from pd.cost.load import StepLoad
from pd.cost.model import CostModel
from pd.cost.sharing import memory_share
from pd.messages import NodeHello
from pd.node.core import NodeCore
from pd.sim.host import SimHost
from pd.sim.member import SimMember
from pd.sim.outbox import RunOutbox
from pd.sim.prompts import TOKEN
from pd.types import Sampled

if TYPE_CHECKING:
    from pd.sim.cell import SimCell

_SAMPLED = Sampled(TOKEN)
_LEAST_PACE = 0.05  # of a step's own duration, whatever the jitter


class SimNode(SimMember):
    """`slowness` is what a step takes, as a multiple of what it should; what else runs on its
    `host`, if that is of any account, comes on top."""

    core: NodeCore

    def __init__(
        self,
        cell: SimCell,
        core: NodeCore,
        outbox: RunOutbox,
        hello: NodeHello,
        cost: CostModel,
        block_bytes: int,
        rng: Random,
        host: SimHost | None = None,
    ) -> None:
        super().__init__(cell, core, hello, cost, block_bytes)
        self.slowness = 1.0
        self._host = host
        if host is not None:
            host.join(self.id, self._crowd_changed)
        self.busy_s = 0.0
        self._outbox = outbox
        self._rng = rng
        self._turn_due = False
        self._num_samples = 0
        # The step or run of steps under way:
        self._began = self._ends = self._first_ends = 0.0
        self._committed = 0.0  # when the last step that is over was
        self._steps = 0
        self._run = cost.decode_run(0, 0)
        self._first_s = 0.0
        self._pace = 1.0  # alone, and beside what runs on the host:
        self._crowd = 1.0
        self._end_call_at = -1.0

    def set_slowness(self, factor: float) -> None:
        """From the step after the one under way."""
        self._before(self.cell.now)
        self.slowness = factor
        if self._steps > 1:  # a run ends with the step that began at the old pace
            self._shorten(1)

    def catch_up(self) -> None:
        super().catch_up()
        if not self.frozen:
            self._outbox.tell_all()
            self._flush(self._committed)

    def end(self) -> None:
        super().end()
        self._tell_host(None)

    # -------------------------------------------------------------- the host
    def _tell_host(self, load: StepLoad | None) -> None:
        """Of the step that begins, or that none does."""
        if self._host is not None:
            self._host.runs(self.id, memory_share(self.cost, load) if load is not None else 0.0)
            self._crowd = self._host.slowness(self.id)

    def _crowd_changed(self) -> None:
        """Once all that happens at this time is over: it may be our own doing."""
        self.cell.queue.at(self.cell.now, self._feel_crowd)

    def _feel_crowd(self) -> None:
        """Go on with the step under way at another pace; the one after it begins anew."""
        if not self._steps or self.frozen or not self.alive:
            return
        assert self._host is not None
        now = self.cell.now
        self._before(now)
        change = self._host.slowness(self.id) / self._crowd
        left_s = self._ends - now
        if change == 1.0 or left_s <= 0.0:
            return
        if self._steps > 1:
            self._shorten(1)
            left_s = self._ends - now
        self._first_ends = self._ends = now + change * left_s
        self._pace *= change
        self._crowd *= change
        self._call_at_end()

    # -------------------------------------------------------------- the loop
    def _after(self, now: float) -> None:
        core = self.core
        if now >= core.next_tick() or len(core.fetcher):
            core.tick(now)
        if not self._steps:
            self._want_turn(now)
        elif self._steps > 1 and (ahead := core.steps_ahead()) < self._steps:
            self._shorten(ahead)
        self._flush(now)
        self._set_alarm(now)

    def _want_turn(self, now: float) -> None:
        """Plan a step, once all that comes at this time has been heard."""
        core = self.core
        if not self._turn_due and (core.decode.scheduler.running or len(core.prefill.scheduler)):
            self._turn_due = True
            self.cell.queue.at(now, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self._steps or self._held_back(self._want_turn, self.cell.now):
            return
        now = self.cell.now
        self._begin(now)
        self._flush(now)
        self._set_alarm(now)

    def _flush(self, now: float) -> None:
        """`now` is when what left the core did so: tokens may be of steps that ended earlier."""
        outbox = self._outbox
        if outbox.prompts:
            for request_id, fetch_s, compute_s in outbox.prompts:
                self.cell.note("prefilled", request_id, fetch_s=fetch_s, compute_s=compute_s)
            outbox.prompts.clear()
        if outbox.firsts or outbox.streams:
            self.cell.tokens(outbox, now)
        for effect in self.core.drain():
            self._do(effect)

    # -------------------------------------------------------------- steps
    def _begin(self, now: float) -> None:
        """Plan and begin a step, or a run of decode steps."""
        plan = self.core.plan(now)
        if plan is None:
            self._steps = 0
            self._tell_host(None)
            return
        num_seqs, context = len(plan.decodes), self.core.decode.scheduler.num_tokens
        load = StepLoad.of(plan) if plan.chunks else None
        if self._host is not None:
            self._tell_host(load or StepLoad.decode(num_seqs, context))
        pace = self.slowness * self._crowd
        jitter = self.cell.spec.jitter
        if jitter:
            pace *= max(_LEAST_PACE, 1.0 + jitter * self._rng.gauss(0.0, 1.0))
        self._began, self._pace = now, pace
        self._num_samples = num_seqs
        if load is not None:
            takes_s = first_s = self.cost.step_s(load)
            self._steps = 1
            self._num_samples += sum(len(chunk.sample) for chunk in plan.chunks)
        else:
            self._steps = self.core.steps_ahead()
            self._run = self.cost.decode_run(num_seqs, context)
            first_s = self._first_s = self._takes_s(1)
            takes_s = self._takes_s(self._steps) if self._steps > 1 else first_s
        self._first_ends, self._ends = now + pace * first_s, now + pace * takes_s
        self._call_at_end()

    def _shorten(self, steps: int) -> None:
        """End the run sooner: the step after that will be another."""
        self._steps = steps
        takes_s = self._first_s if steps == 1 else self._takes_s(steps)
        self._ends = self._began + self._pace * takes_s
        self._call_at_end()

    def _call_at_end(self) -> None:
        """One call is enough: if it comes too early, it is made again."""
        queue = self.cell.queue
        if not queue.now <= self._end_call_at <= self._ends:
            self._end_call_at = self._ends
            queue.at(self._ends, self._end, self._ends)

    def _end(self, at: float) -> None:
        if at != self._end_call_at or self._held_back(self._end, at):
            return
        self._end_call_at = -1.0
        if not self._steps:
            return
        now = self.cell.now
        if now < self._ends:
            self._call_at_end()
            return
        self._commit(now, self._steps)
        self._steps = 0
        self._after(now)
        if not self._turn_due:
            self._tell_host(None)

    def _before(self, now: float) -> None:
        """Commit the steps of a run that are over."""
        if self._steps <= 1 or now < self._first_ends:
            return
        over = self._steps_over((now - self._began) / self._pace)
        if over >= self._steps:  # its end is what comes next anyway
            return
        then = self._began + self._pace * self._takes_s(over)
        self._commit(then, over)
        self._begin(then)
        self._flush(then)

    def _commit(self, now: float, times: int) -> None:
        self.busy_s += now - self._began
        self._committed = now
        self.core.commit([_SAMPLED] * self._num_samples, now, times)

    def _takes_s(self, num_steps: int) -> float:
        return self._run.takes_s(num_steps)

    def _steps_over(self, elapsed_s: float) -> int:
        """How many steps of the run are over; at least one is. Steps grow longer, so that the
        first guess is the most there can be."""
        over = min(self._steps, max(1, int(elapsed_s / self._first_s)))
        while over > 1 and (takes_s := self._takes_s(over)) > elapsed_s:
            over = max(1, min(over - 1, int(over * elapsed_s / takes_s)))
        while over < self._steps and self._takes_s(over + 1) <= elapsed_s:
            over += 1
        return over
