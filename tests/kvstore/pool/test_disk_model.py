"""Any sequence of writes, reads, erases and restarts against a dict."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from disktools import ODD, Tier, key, payload
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

SLOTS = 11
MAX_OUT = 20

slots = st.integers(0, SLOTS - 1)
numbers = st.integers(0, 5)


class DiskMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.tier = self._open()
        self.model: dict[int, int] = {}  # slot -> block, oldest first
        # What is out: (kind, slot, key, expected to be ok, where it is read to, its block).
        self.out: list[tuple[str, int, bytes, bool, np.ndarray | None, int]] = []

    def _open(self) -> Tier:
        return Tier(Path(self.folder.name), SLOTS, ODD, threads=3, max_queued=MAX_OUT)

    @rule(slot=slots, number=numbers)
    def write(self, slot: int, number: int) -> None:
        accepted = self.tier.disk.write(slot, key(number), payload(number, ODD))
        assert accepted == (len(self.out) < MAX_OUT)
        if accepted:
            self.model.pop(slot, None)
            self.model[slot] = number
            self.out.append(("write", slot, key(number), True, None, number))

    @rule(slot=slots, number=numbers)
    def read(self, slot: int, number: int) -> None:
        into = np.zeros(ODD.block_bytes, np.uint8)
        if self.tier.disk.read(slot, key(number), into):
            ok = self.model.get(slot) == number
            self.out.append(("read", slot, key(number), ok, into, number))
        else:
            assert len(self.out) == MAX_OUT

    @rule(slot=slots)
    def erase(self, slot: int) -> None:
        if self.tier.disk.erase(slot):
            self.model.pop(slot, None)
            self.out.append(("erase", slot, b"", True, None, 0))
        else:
            assert len(self.out) == MAX_OUT

    @precondition(lambda self: self.out)
    @rule()
    def wait(self) -> None:
        done = self.tier.wait(len(self.out))
        for slot in range(SLOTS):
            expected = [entry for entry in self.out if entry[1] == slot]
            came = [entry for entry in done if entry.slot == slot]
            assert [(d.kind, d.slot, d.key, d.ok) for d in came] == [e[:4] for e in expected]
        for _, _, _, ok, into, number in self.out:
            if ok and into is not None:
                np.testing.assert_array_equal(into, payload(number, ODD))
        self.out.clear()

    @rule()
    def restart(self) -> None:
        if self.out:
            self.wait()
        self.tier.disk.close()
        self.tier = self._open()
        newest = {number: slot for slot, number in self.model.items()}
        kept = [(slot, n) for slot, n in self.model.items() if newest[n] == slot]
        assert self.tier.found == [(slot, key(n)) for slot, n in kept]
        self.model = dict(kept)

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert {"damaged", "write_errors", "read_errors"}.isdisjoint(self.tier.disk.counters)

    def teardown(self) -> None:
        self.tier.disk.close()
        self.folder.cleanup()


TestDiskModel = DiskMachine.TestCase
TestDiskModel.settings = settings(max_examples=40, stateful_step_count=40)
