"""Blocks between a device and the transports' host memory."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kvstore.transfer import Push
from kvstore.transport.events import Arrived, Pushed
from pd.node.blockmover import DeviceBlockMover
from pd.node.compute import ComputeThread, JobDone
from pd.outbox import Expect, Forget
from pd.types import BatchPlan, StepResult

NUM_BLOCKS, BLOCK_BYTES = 8, 32


class DeviceStub:
    """KV in memory of its own, as on a GPU."""

    def __init__(self) -> None:
        self.kv = np.arange(NUM_BLOCKS * BLOCK_BYTES, dtype=np.uint8).reshape(NUM_BLOCKS, -1)

    def execute(self, plan: BatchPlan) -> StepResult:
        return StepResult()

    def save_blocks(self, ids, out) -> None:
        out[:] = self.kv[ids]

    def load_blocks(self, ids, data) -> None:
        self.kv[ids] = data


class HubStub:
    def __init__(self, host) -> None:
        self.host = host
        self.events: list = []
        self.pushed: list = []
        self.calls: list = []

    def push(self, push: Push) -> None:
        self.pushed.append((push, self.host[list(push.src)].copy()))

    def expect(self, *args) -> None:
        self.calls.append(("expect", args[0]))

    def forget(self, transfer_id: int) -> None:
        self.calls.append(("forget", transfer_id))

    def poll(self) -> list:
        events, self.events = self.events, []
        return events


@pytest.fixture
def parts():
    host = np.zeros((NUM_BLOCKS, BLOCK_BYTES), np.uint8)
    device, hub = DeviceStub(), HubStub(host)
    compute = ComputeThread(lambda: device, lambda: None)
    yield device, host, hub, compute, DeviceBlockMover(hub, compute, host)
    compute.close()


def run_jobs(compute: ComputeThread, count: int) -> None:
    deadline = time.monotonic() + 10
    while count:
        for done in compute.poll():
            assert isinstance(done, JobDone)
            done.then()
            count -= 1
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_push_leaves_with_what_the_device_had(parts):
    device, _, hub, compute, mover = parts
    mover.act(Push(1, "decode-0", 1, 0, src=(5, 2), dst=(0, 1)))
    assert not hub.pushed
    run_jobs(compute, 1)
    ((push, sent),) = hub.pushed
    assert push.src == (5, 2)
    assert (sent == device.kv[[5, 2]]).all()


def test_arrived_blocks_are_on_the_device_before_the_core_hears_of_them(parts):
    device, host, hub, compute, mover = parts
    mover.act(Expect(9, "prefill-0", 1, (3, 6, 7)))
    host[[6, 7]] = 77
    hub.events = [Arrived(9, 1, 2, ok=True)]
    reported = []
    mover.poll(lambda event: reported.append((event, device.kv[[6, 7]].copy())))
    assert not reported
    run_jobs(compute, 1)
    ((event, seen),) = reported
    assert event == Arrived(9, 1, 2, ok=True)
    assert (seen == 77).all()


def test_what_is_not_wanted_or_damaged_stays_off_the_device(parts):
    device, host, hub, _, mover = parts
    before = device.kv.copy()
    host[:] = 88
    mover.act(Expect(9, "prefill-0", 1, (3, 6, 7)))
    mover.act(Expect(10, "prefill-0", 1, (1,)))
    mover.act(Forget(9))
    hub.events = [Arrived(9, 0, 3, ok=True), Arrived(10, 0, 1, ok=False), Pushed(4, 0, 1, ok=True)]
    reported = []
    mover.poll(reported.append)
    assert [type(event) for event in reported] == [Arrived, Arrived, Pushed]
    assert (device.kv == before).all()
    assert hub.calls == [("expect", 9), ("expect", 10), ("forget", 9)]
