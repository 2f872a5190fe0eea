"""A state machine over a whole cell: hypothesis picks every delivery, step, copy and failure,
and looks for a shortest sequence that breaks the accounting of pages.

PD_FUZZ_STEPS sets how many rules are run altogether (at most; each run has up to 60). Then a
failure is made as small as possible, too, which takes minutes.
"""

from __future__ import annotations

import os

from cell.cell import Cell, Faults
from cell.checks import check_done, check_pages
from cell.workload import SHARED_PREFIX, TOPOLOGIES, make_request, stage_of
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pd.node.core import NodeLimits
from pd.policies.order import OrderPolicy

STEPS_PER_RUN = 60
FUZZ = os.environ.get("PD_FUZZ_STEPS")
STEPS = int(FUZZ or 6000)

some = st.integers(0, 1 << 16)  # which of the things there are, modulo their number
dice = st.integers(0, 9)  # failures happen on some numbers only, so that runs get far
faults = st.sampled_from([Faults(), Faults(drop=0.1, refuse=0.05, damage=0.05, fail=0.05)])


class CellMachine(RuleBasedStateMachine):
    """Whatever order things happen in, no page has a wrong holder; at the end all are free."""

    cell: Cell

    @initialize(
        topology=st.sampled_from(sorted(TOPOLOGIES)),
        num_blocks=st.sampled_from([8, 12, 40]),
        order=st.sampled_from(["fcfs", "sjf", "edf", "priority"]),
        faults=faults,
        seed=some,
    )
    def start(self, topology, num_blocks, order, faults, seed):  # type: ignore[no-untyped-def]
        limits = NodeLimits(
            max_num_batched_tokens=6, max_num_seqs=4, order=OrderPolicy(order, 1.0),
            watermark=0.1, lease_s=1.0, heartbeat_s=0.2,
        )  # fmt: skip
        self.cell = Cell(
            TOPOLOGIES[topology], num_blocks=num_blocks, block_size=2, limits=limits,
            faults=faults, seed=seed,
        )  # fmt: skip

    # ------------------------------------------------------------ clients
    @rule(
        length=st.integers(1, 9), n=st.integers(1, 3), max_tokens=st.integers(1, 5),
        seed=some, shared=st.booleans(), priority=st.integers(0, 2),
    )  # fmt: skip
    def submit(self, length, n, max_tokens, seed, shared, priority):  # type: ignore[no-untyped-def]
        prompt = SHARED_PREFIX[:length] if shared else tuple(seed + i for i in range(length))
        number = self.cell.counts["requests"]  # never used twice in a cell
        self.cell.submit(
            make_request(
                f"r{number}", prompt, max_tokens=max_tokens, n=n, seed=seed, priority=priority,
                arrival_s=self.cell.now,
            )
        )  # fmt: skip

    @precondition(lambda self: self.running())
    @rule(which=some, whole=st.booleans())
    def cancel(self, which: int, whole: bool) -> None:
        running = self.running()
        request_id = running[which % len(running)]
        event(f"cancelled: {stage_of(self.cell, request_id)}")
        if whole:
            self.cell.cancel(request_id)
        else:
            self.cell.gateway.stop(request_id, self.unfinished(request_id)[0])

    # ------------------------------------------------------------ what goes on by itself
    @precondition(lambda self: self.cell.network.channels)
    @rule(which=some, count=st.integers(1, 6))
    def deliver(self, which: int, count: int) -> None:
        """Some messages of one channel, in order."""
        for _ in range(count):
            self.act("deliver", which)

    @rule(which=some)
    def turn(self, which: int) -> None:
        self.act("turn", which)

    @precondition(lambda self: any(node.plan for node in self.cell.nodes.values()))
    @rule(which=some)
    def finish(self, which: int) -> None:
        self.act("finish", which)

    @precondition(lambda self: self.cell.network.copies)
    @rule(which=some)
    def copy(self, which: int) -> None:
        self.act("copy", which)

    @precondition(lambda self: self.cell.network.notices)
    @rule(which=some)
    def notify(self, which: int) -> None:
        self.act("notify", which)

    @rule(count=st.integers(1, 30), dice=dice)
    def time(self, count: int, dice: int) -> None:
        for _ in range(count if dice == 0 else 1):
            self.act("time", 0)

    @rule(count=st.integers(10, 60))
    def go_on(self, count: int) -> None:
        """Let things take their course for a while, so that runs get far."""
        for _ in range(count):
            self.cell.step()
            check_pages(self.cell)

    # ------------------------------------------------------------ failures
    @precondition(lambda self: self.cell.nodes)
    @rule(which=some, noticed=st.booleans(), dice=dice)
    def kill(self, which: int, noticed: bool, dice: int) -> None:
        if dice == 0:
            self.cell.kill_node(self.node(which), noticed=noticed)

    @precondition(lambda self: self.cell.roles.keys() - self.cell.nodes.keys())
    @rule()
    def restart(self) -> None:
        self.cell.start_node(min(self.cell.roles.keys() - self.cell.nodes.keys()))

    @precondition(lambda self: self.cell.nodes)
    @rule(which=some, dice=dice)
    def freeze_or_thaw(self, which: int, dice: int) -> None:
        node = self.cell.nodes[self.node(which)]
        node.frozen = not node.frozen and dice < 3

    @precondition(lambda self: self.cell.kills)
    @rule()
    def supervise(self) -> None:
        self.act("kill", 0)

    @rule(dice=dice)
    def lose_gateway(self, dice: int) -> None:
        if dice == 0:
            self.cell.kill_gateway()

    # ------------------------------------------------------------ what must hold
    @invariant()
    def pages_have_their_holders(self) -> None:
        if hasattr(self, "cell"):
            check_pages(self.cell)

    def teardown(self) -> None:
        if not hasattr(self, "cell"):
            return
        for node in self.cell.nodes.values():
            node.frozen = False
        for node_id in self.cell.roles.keys() - self.cell.nodes.keys():
            self.cell.start_node(node_id)
        self.cell.settle(limit=20_000)
        check_done(self.cell)

    # ------------------------------------------------------------ inside
    def act(self, kind: str, which: int) -> None:
        found = [action for action in self.cell.actions() if action[0] == kind]
        if found:
            self.cell.act(*found[which % len(found)])

    def running(self) -> list[str]:
        records = self.cell.gateway.records
        return [key for key, record in records.items() if not record.finished]

    def unfinished(self, request_id: str) -> tuple[int, ...]:
        return self.cell.gateway.records[request_id].unfinished

    def node(self, which: int) -> str:
        nodes = sorted(self.cell.nodes)
        return nodes[which % len(nodes)]


TestCellMachine = CellMachine.TestCase
TestCellMachine.settings = settings(
    max_examples=max(1, STEPS // STEPS_PER_RUN),
    stateful_step_count=STEPS_PER_RUN,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[phase for phase in Phase if phase is not Phase.shrink or FUZZ],
)
