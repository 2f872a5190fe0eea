"""The disk tier of the pool: KV blocks in preallocated files, moved by threads of its own.

It is a cache, and nothing is synced to the device. What was reported as written survives the
death of the process, `kill -9` included, because the kernel has it. A crash of the host can
lose or tear any block: the checksums tell, and such a block is a miss.

A slot's header is erased before its payload changes and written after it, so a slot whose
writer died holds nothing, not the old block and not half of the new one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import xxhash
from numpy.typing import NDArray

from kvstore.layout import KVLayout
from kvstore.pool.disk_files import SlotFiles, read_all, write_all
from kvstore.pool.disk_format import EMPTY, KEY_BYTES, Header

log = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0

Kind = Literal["write", "read", "erase"]
Bytes = memoryview | NDArray[Any]  # a block, in C order


@dataclass(frozen=True, slots=True)
class DiskDone:
    """An operation came back: its memory is no longer read or written.

    `seconds` is what it took from its turn on, without its wait for one. An erased slot has
    no key. `num_bytes` of payload were moved; none if it is not ok.
    """

    kind: Kind
    slot: int
    key: bytes
    ok: bool
    seconds: float = 0.0
    num_bytes: int = 0


@dataclass(eq=False, slots=True)
class _Job:
    kind: Kind
    slot: int
    key: bytes
    view: memoryview
    sequence: int = 0


class _Unfit(Exception):
    """A slot does not hold what is wanted of it."""

    def __init__(self, counter: str, why: str) -> None:
        super().__init__(why)
        self.counter = counter


class DiskTier:
    """`num_slots` slots on disk, each for one block of `layout`, in at most `capacity_bytes`.

    `write`, `read` and `erase` never block or touch the disk: they accept an operation, or return
    False if `max_queued` of them are out already (accepted, and not yet given back by `poll`)
    or the tier is closed. An accepted operation comes back exactly once from `poll`; `wake` is
    called from one of the tier's threads when there is something to poll again, and must not
    raise. Operations on one slot are executed in the order they were accepted in. ValueError is
    for a caller's mistake: a slot, key or memory of the wrong size.

    `counters` has the `writes`, `reads` and `erases` that went well, the operations `refused`,
    and those that came back not ok, of which one is logged once in a while:
        write_errors, read_errors, erase_errors   the disk refused, or took or gave too little
        wrong_blocks                              the slot holds another block, or none
        damaged                                   the payload is not what was written
        cancelled                                 the tier was closed first
    A write that is not ok leaves the slot empty. If its headers could not be written, the next
    start may find there what was before, or the new block, whole in either case. A read that is
    not ok may have scribbled on its memory.

    `verify` False saves the checksums of payloads, and their detection of damage.
    ConfigError if the directory cannot be used, has too little room, or is another's.
    """

    def __init__(
        self,
        directory: Path,
        layout: KVLayout,
        capacity_bytes: int,
        *,
        wake: Callable[[], None],
        verify: bool = True,
        threads: int = 4,
        max_queued: int = 256,
    ) -> None:
        if threads < 1 or max_queued < 1:
            raise ValueError(f"threads ({threads}) and max_queued ({max_queued}) start at 1")
        self._files = SlotFiles(directory, layout, capacity_bytes, checked_only=verify)
        self.num_slots = self._files.geometry.num_slots
        self.counters: Counter[str] = Counter()
        self._found: list[tuple[int, bytes]] | None = self._files.inventory.slots
        self._sequence = self._files.inventory.last_sequence
        self._block_bytes = layout.block_bytes
        self._verify = verify
        self._wake = wake
        self._max_queued = max_queued
        self._lock = threading.Lock()  # of everything below, and of `counters`
        self._closed = False
        self._num_out = 0
        self._ready: SimpleQueue[_Job | None] = SimpleQueue()  # None ends a thread
        # Of every slot with a job that is ready or executed: the jobs that wait for that one.
        self._waiting: dict[int, deque[_Job]] = {}
        self._done: deque[DiskDone] = deque()
        self._last_logged = -_LOG_EVERY_S
        self._unlogged = 0
        self._threads = [
            # Daemons: a node that ends without `close` must not be kept alive by its disk.
            threading.Thread(target=self._serve, name=f"disk-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def recover(self) -> list[tuple[int, bytes]]:
        """(slot, key) of the blocks found at the start, oldest first.

        Their headers are sound; their payloads are verified when they are read. Every other
        slot is empty. To be called once, and before any operation.
        """
        if self._found is None:
            raise RuntimeError("recover comes once, and before any operation on the tier")
        found, self._found = self._found, None
        return found

    def write(self, slot: int, key: bytes, source: Bytes) -> bool:
        """Put a block into a slot. `source` must stay as it is until the write is back."""
        return self._submit(_Job("write", slot, self._key(key), self._view(source)))

    def read(self, slot: int, key: bytes, out: Bytes) -> bool:
        """Get the block `key` from a slot. `out` belongs to the tier until the read is back."""
        view = self._view(out)
        if view.readonly:
            raise ValueError("a block cannot be read into read-only memory")
        return self._submit(_Job("read", slot, self._key(key), view))

    def erase(self, slot: int) -> bool:
        """Make a slot empty. A slot that will be written need not be erased before."""
        return self._submit(_Job("erase", slot, b"", memoryview(b"")))

    def poll(self) -> list[DiskDone]:
        """What has come back since the last call."""
        with self._lock:
            done = list(self._done)
            self._done.clear()
            self._num_out -= len(done)
        return done

    def close(self) -> None:
        """End the threads, after the operations they are at; the others come back not ok."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()
        self._files.close()

    def _key(self, key: bytes) -> bytes:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key of a block has {KEY_BYTES} bytes, not {len(key)}")
        return bytes(key)

    def _view(self, data: Bytes) -> memoryview:
        view = data if isinstance(data, memoryview) else data.data
        if view.nbytes != self._block_bytes or not view.c_contiguous:
            raise ValueError(
                f"a block is {self._block_bytes} contiguous bytes, not {view.nbytes} "
                f"{'contiguous' if view.c_contiguous else 'scattered'} ones"
            )
        return view.cast("B")

    def _submit(self, job: _Job) -> bool:
        if not 0 <= job.slot < self.num_slots:
            raise ValueError(f"slot {job.slot} is not one of {self.num_slots}")
        with self._lock:
            if self._closed or self._num_out >= self._max_queued:
                self.counters["refused"] += 1
                return False
            self._found = None
            self._num_out += 1
            if job.kind == "write":
                self._sequence += 1
                job.sequence = self._sequence
            behind = self._waiting.get(job.slot)
            if behind is None:
                self._waiting[job.slot] = deque()
                self._ready.put(job)
            else:
                behind.append(job)
        return True

    def _serve(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Execute one job; False when the tier is closed.

        A method of its own, so that no idle thread holds on to the memory of its last job.
        """
        job = self._ready.get()
        if job is None:
            return False
        begun = time.perf_counter()
        fault = "cancelled" if self._closed else self._execute(job)
        seconds = time.perf_counter() - begun
        moved = 0 if fault else len(job.view)
        with self._lock:
            nothing_to_poll = not self._done
            self.counters[fault or f"{job.kind}s"] += 1
            self._done.append(DiskDone(job.kind, job.slot, job.key, not fault, seconds, moved))
            behind = self._waiting[job.slot]
            if self._closed:
                self.counters["cancelled"] += len(behind)
                self._done.extend(
                    DiskDone(each.kind, each.slot, each.key, False) for each in behind
                )
                behind.clear()
            if behind:
                self._ready.put(behind.popleft())
            else:
                del self._waiting[job.slot]
        if nothing_to_poll:
            self._wake()
        return True

    def _execute(self, job: _Job) -> str:
        """Do the job; why it failed, by the name of the counter, or nothing."""
        try:
            if job.kind == "read":
                self._read(job)
            else:
                self._files.set_header(job.slot, EMPTY)
                if job.kind == "write":
                    self._write(job)
            return ""
        except _Unfit as unfit:
            fault, why = unfit.counter, str(unfit)
        except Exception as error:  # whatever it is, the job must come back and the thread live on
            fault, why = f"{job.kind}_errors", str(error) or repr(error)
        self._log(job, why)
        return fault

    # Blocks are hashed and moved whole: that costs fewer turns at the GIL and at the file
    # system's journal than to take them piece by piece, and a block still fits into caches.

    def _write(self, job: _Job) -> None:
        descriptor, offset = self._files.place(job.slot)
        checksum = xxhash.xxh3_64_intdigest(job.view) if self._verify else None
        write_all(descriptor, job.view, offset)
        header = Header(job.key, job.sequence, checksum)
        self._files.set_header(job.slot, self._files.format.pack(header))

    def _read(self, job: _Job) -> None:
        header = self._files.format.parse(self._files.header(job.slot))
        if header is None or header.key != job.key:
            raise _Unfit("wrong_blocks", "it holds another block, or none")
        descriptor, offset = self._files.place(job.slot)
        read_all(descriptor, job.view, offset)
        if self._verify and xxhash.xxh3_64_intdigest(job.view) != header.checksum:
            raise _Unfit("damaged", "what it holds is not what was written")

    def _log(self, job: _Job, why: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._unlogged += 1
            if now - self._last_logged < _LOG_EVERY_S:
                return
            count, self._unlogged, self._last_logged = self._unlogged, 0, now
        log.warning(
            "disk tier %s: %s of slot %d failed: %s (%d such failures since the last line)",
            self._files.directory, job.kind, job.slot, why, count,
        )  # fmt: skip
