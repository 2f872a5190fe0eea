"""The two tiers of a pool: which block lies in which page and slot, and what the disk does. Pure.

Every block is written to the disk in the background, oldest first, so that evicting it from
DRAM later costs nothing and a restart finds it again. A block is lost if it is evicted before
its turn has come, or when the disk fails: that is a miss later, never wrong data, and counted.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from kvstore.blocklog import BlockLog
from kvstore.eviction import make_eviction
from kvstore.pool.effects import DiskEffect, DiskErase, DiskOutcome, DiskRead, DiskWrite
from pd.types import Tier


class Tiers:
    """Pages (DRAM) and slots (disk), each with an eviction of its own.

    A pinned block stays in its page: it is being sent, or written to the disk. What changes
    goes to `log`, what is lost into `counters`:

        dropped       evicted from DRAM before it was on the disk (all of them without a disk)
        unspilled     not written, because every slot was being read
        disk_errors   writes and reads that failed
    """

    def __init__(
        self,
        num_pages: int,
        num_slots: int,
        log: BlockLog,
        counters: Counter[str],
        *,
        eviction: str,
        max_writes: int,
        max_reads: int,
    ) -> None:
        self.num_pages, self.num_slots = num_pages, num_slots
        self.effects: list[DiskEffect] = []
        self._log = log
        self._counters = counters
        self._max_writes, self._max_reads = max_writes, max_reads
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._page_of: dict[bytes, int] = {}
        self._fresh: set[bytes] = set()  # stored, and the rest of their prompt still to come
        self._pins: Counter[bytes] = Counter()
        self._dram = make_eviction(eviction, num_pages)
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._slot_of: dict[bytes, int] = {}
        self._disk = make_eviction(eviction, max(1, num_slots))
        self._unwritten: OrderedDict[bytes, None] = OrderedDict()  # in DRAM only, oldest first
        self._writing: dict[bytes, int] = {}  # key to slot
        self._reading: dict[bytes, int] = {}  # key to the page it is read into
        self._read_queue: deque[bytes] = deque()

    # -------------------------------------------------------------- views
    def __contains__(self, key: bytes) -> bool:
        return key in self._page_of or key in self._slot_of

    def page_of(self, key: bytes) -> int | None:
        """The page in which this block can be read."""
        return self._page_of.get(key)

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def num_in_dram(self) -> int:
        return len(self._page_of)

    @property
    def num_on_disk(self) -> int:
        return len(self._slot_of)

    @property
    def idle(self) -> bool:
        """Nothing is being read or written, or waits for it."""
        return not (self._reading or self._writing or self._unwritten)

    def inventory(self) -> Iterator[tuple[Tier, bytes]]:
        for key in self._page_of:
            yield "dram", key
        for key in self._slot_of:
            yield "disk", key

    # -------------------------------------------------------------- pages
    def take_page(self) -> int | None:
        """A page of undefined content, if need be by evicting; None if all are in use."""
        if self._free_pages:
            return self._free_pages.pop()
        victim = self._dram.evict(self._pins.__contains__)
        if victim is None:
            return None
        self._log.removed(victim, "dram")
        self._counters["evicted"] += 1
        if victim not in self._slot_of:
            self._counters["dropped"] += 1
            self._unwritten.pop(victim, None)
        return self._page_of.pop(victim)

    def give_back(self, pages: Iterable[int]) -> None:
        """Pages that were taken and not filled."""
        self._free_pages.extend(pages)

    def store(self, key: bytes, page: int) -> None:
        """A page that was taken now holds this block, which no tier had. It is findable at once,
        and not evicted before `settle`."""
        self._page_of[key] = page
        self._fresh.add(key)
        self._log.stored(key, "dram")

    def settle(self, keys: Sequence[bytes]) -> None:
        """Blocks of one prompt, in its order, were stored. The last counts as the oldest, here
        and on the disk: without those before it, it is worth nothing."""
        self._fresh.difference_update(keys)
        for key in reversed(keys):
            self._dram.insert(key)
            if self.num_slots:
                self._unwritten[key] = None

    def touch(self, keys: Sequence[bytes]) -> None:
        """Blocks of one prompt, in its order, were asked for."""
        for key in reversed(keys):
            if key not in self._page_of:
                self._disk.touch(key)
            elif key not in self._fresh:
                self._dram.touch(key)

    def pin(self, key: bytes) -> None:
        self._pins[key] += 1

    def unpin(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    # -------------------------------------------------------------- the disk
    def recovered(self, slots: Iterable[tuple[int, bytes]]) -> int:
        """What the disk of an earlier process still holds, oldest first; how many that is."""
        taken = set()
        for slot, key in slots:
            self._slot_of[key] = slot
            self._disk.insert(key)
            self._log.stored(key, "disk")
            taken.add(slot)
        self._free_slots = [slot for slot in self._free_slots if slot not in taken]
        return len(taken)

    def want_from_disk(self, key: bytes) -> bool:
        """Have a block that is only on disk read into a page; False without a page for it."""
        if key in self._reading:
            return True
        page = self.take_page()
        if page is None:
            return False
        self._reading[key] = page
        self._read_queue.append(key)
        return True

    def work(self) -> None:
        """Ask the disk for what is next, a bounded number of operations at a time."""
        while self._read_queue and len(self._reading) - len(self._read_queue) < self._max_reads:
            key = self._read_queue.popleft()
            self.effects.append(DiskRead(self._slot_of[key], key, self._reading[key]))
        while self._unwritten and len(self._writing) < self._max_writes:
            key, _ = self._unwritten.popitem(last=False)
            slot = self._take_slot()
            if slot is None:
                self._counters["unspilled"] += 1
                continue
            self._writing[key] = slot
            self.pin(key)
            self.effects.append(DiskWrite(slot, key, self._page_of[key]))

    def done(self, done: DiskOutcome) -> None:
        """An operation is over. A block that was read is in its page now, if it was ok."""
        if not done.ok:
            self._counters["disk_errors"] += 1
        if done.kind == "write":
            self._written(done.key, ok=done.ok)
        else:
            self._was_read(done.key, ok=done.ok)

    def _written(self, key: bytes, *, ok: bool) -> None:
        slot = self._writing.pop(key)
        self.unpin([key])
        if not ok:
            self._free_slots.append(slot)
            return
        self._slot_of[key] = slot
        self._disk.insert(key)
        self._log.stored(key, "disk")
        self._counters["spilled"] += 1

    def _was_read(self, key: bytes, *, ok: bool) -> None:
        page = self._reading.pop(key)
        if ok:
            self._counters["read"] += 1
            self._page_of[key] = page
            self._dram.insert(key)
            self._log.stored(key, "dram")
            return
        self._free_pages.append(page)
        slot = self._slot_of.pop(key)
        self._disk.remove(key)
        self._log.removed(key, "disk")
        self._free_slots.append(slot)
        self.effects.append(DiskErase(slot))

    def _take_slot(self) -> int | None:
        if self._free_slots:
            return self._free_slots.pop()
        victim = self._disk.evict(self._reading.__contains__)
        if victim is None:
            return None
        self._log.removed(victim, "disk")
        self._counters["disk_evicted"] += 1
        return self._slot_of.pop(victim)

    def check(self, pins: Counter[bytes], taken: list[int]) -> None:
        """Assert every invariant, in O(blocks), given who else pins blocks and has pages."""
        pages = [*self._free_pages, *self._page_of.values(), *self._reading.values(), *taken]
        assert sorted(pages) == list(range(self.num_pages)), "a page leaked or is used twice"
        slots = [*self._free_slots, *self._slot_of.values(), *self._writing.values()]
        assert sorted(slots) == list(range(self.num_slots)), "a slot leaked or is used twice"
        assert self._pins == pins + Counter(self._writing.keys()), "a pin leaked or is missing"
        assert len(self._dram) + len(self._fresh) == len(self._page_of)
        assert len(self._disk) == len(self._slot_of)
        assert all((key in self._dram) != (key in self._fresh) for key in self._page_of)
        assert all(key in self._disk for key in self._slot_of)
        assert all(key in self._page_of for key in (*self._unwritten, *self._writing))
        assert all(key in self._slot_of for key in self._reading)
