"""Arenas and segments: shared between processes, gone with their owner, cheap until touched."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore import segment
from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.segment import SHM, Segment, sweep
from pd.errors import ConfigError, TransferError

LAYOUT = KVLayout("bfloat16", 2, 3, 8, 4, "model")


def exists(name: str | None) -> bool:
    assert name
    return (SHM / name).exists()


def memory_kib() -> int:
    """Resident memory of this process, now."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+)", status)
    assert match
    return int(match[1])


@pytest.mark.parametrize("shared", [True, False])
def test_an_arena_as_bytes_and_as_a_tensor(shared: bool) -> None:
    torch = pytest.importorskip("torch")
    arena = KVArena(LAYOUT, 5, shared=shared)
    kv = arena.as_torch()
    assert kv.shape == (5, 2, 2, 3, 4, 8) and kv.dtype == torch.bfloat16 and kv.is_contiguous()
    name = arena.name
    assert (name is not None) == shared
    kv[3] = 1.0
    assert arena.blocks[3].tobytes() == b"\x80\x3f" * (LAYOUT.block_bytes // 2)
    assert not arena.blocks[2].any() and not arena.blocks[4].any()
    arena.close()
    assert kv[3].sum() == kv[3].numel()  # memory that is viewed stays
    assert not shared or not exists(name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_is_viewable(dtype: str) -> None:
    pytest.importorskip("torch")
    layout = KVLayout(dtype, 1, 1, 4, 2, "m")
    arena = KVArena(layout, 2, shared=False)
    assert str(arena.as_torch().dtype) == f"torch.{dtype}"
    assert arena.as_torch()[0].numel() * arena.as_torch().element_size() == layout.block_bytes
    arena.close()


def test_two_mappings_of_one_arena() -> None:
    owner = KVArena(LAYOUT, 4, shared=True)
    assert owner.name and os.stat(SHM / owner.name).st_mode & 0o777 == 0o600
    guest = KVArena.attach(LAYOUT, owner.name)
    guest.blocks[1] = 7
    assert (owner.blocks[1] == 7).all() and guest.num_blocks == 4
    guest.close()
    assert exists(owner.name)  # a guest removes nothing
    guest = KVArena.attach(LAYOUT, owner.name)
    owner.close()
    guest.blocks[2] = 9  # still mapped: no fault
    guest.close()
    assert not exists(owner.name)


def test_what_cannot_be_attached() -> None:
    with pytest.raises(TransferError, match="not the name"):
        KVArena.attach(LAYOUT, "../etc/passwd")
    with pytest.raises(TransferError, match="cannot be mapped"):
        KVArena.attach(LAYOUT, "pd-kv-" + "0" * 32)
    other = KVArena(LAYOUT, 1, shared=True)
    try:
        with pytest.raises(TransferError, match="whole number of blocks"):
            KVArena.attach(KVLayout("float32", 7, 3, 8, 4, "model"), other.name or "")
    finally:
        other.close()


def test_a_large_arena_costs_nothing_until_touched() -> None:
    layout = KVLayout("float32", 30, 3, 64, 16, "m")
    before = memory_kib()
    shared = KVArena(layout, 1000, shared=True) if room() > 2 << 30 else None
    private = KVArena(layout, 1000, shared=False)
    assert private.num_bytes > 700 << 20
    private.blocks[500, :100] = 1
    assert memory_kib() - before < 50 << 10
    private.close()
    if shared is not None:
        shared.close()


@pytest.mark.parametrize("shared", [True, False])
def test_a_populated_arena_has_its_memory_and_content(shared: bool) -> None:
    layout = KVLayout("float32", 30, 3, 64, 16, "m")
    arena = KVArena(layout, 60, shared=shared)  # 44 MB: more than one step
    arena.blocks[7] = 3
    before = memory_kib()
    arena.populate()
    assert (arena.blocks[7] == 3).all()
    assert not arena.blocks[8:].any() and not arena.blocks[:7].any()
    assert memory_kib() - before > 0.9 * 59 * layout.block_bytes / 1024
    if arena.name is not None:
        guest = KVArena.attach(layout, arena.name)
        assert guest.populated
        guest.populate()
        assert (guest.blocks == arena.blocks).all()
        guest.close()
        guest.populate()  # of what is closed: nothing
    arena.close()


def test_an_arena_that_its_owner_did_not_populate_is_not_taken_for_one_by_a_guest() -> None:
    owner = KVArena(LAYOUT, 1000, shared=True)
    owner.blocks[3] = 1
    assert owner.name
    guest = KVArena.attach(LAYOUT, owner.name)
    assert not guest.populated
    guest.close()
    owner.close()


def test_memory_that_cannot_be_populated_is_an_error_that_says_how_much_could() -> None:
    class Full:
        def __len__(self) -> int:
            return 5 << 20

        def madvise(self, option: int, start: int, length: int) -> None:
            if start:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(MemoryError, match="2 of 5 MiB"):
        segment.populate(Full())  # type: ignore[arg-type]


def test_a_kernel_that_cannot_populate_leaves_it_to_the_first_touch() -> None:
    class Old:
        calls = 0

        def __len__(self) -> int:
            return 5 << 20

        def madvise(self, option: int, start: int, length: int) -> None:
            self.calls += 1
            raise OSError(errno.EINVAL, "Invalid argument")

    memory = Old()
    segment.populate(memory)  # type: ignore[arg-type]
    assert memory.calls == 1


def room() -> int:
    status = os.statvfs(SHM)
    return status.f_bavail * status.f_frsize


def test_more_than_there_is_room_for_is_refused() -> None:
    layout = KVLayout("float32", 1, 1, 1024, 1024, "m")
    with pytest.raises(ConfigError, match="--shm-size"):
        KVArena(layout, room() // layout.block_bytes + 2, shared=True)


@pytest.mark.parametrize("shared", [True, False])
def test_pages_that_memory_does_not_hold_name_the_option_and_leave_nothing(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas: list[tuple[KVArena, str | None]] = []

    def full(arena: KVArena, pause_s: float = 0.0) -> None:
        arenas.append((arena, arena.name))
        raise MemoryError("only 0 of 1 MiB fit")

    monkeypatch.setattr(KVArena, "populate", full)
    with pytest.raises(ConfigError, match="only 0 of 1 MiB fit; set a smaller kv_cache_gib"):
        KVArena.resident(LAYOUT, 3, shared=shared, option="kv_cache_gib")
    [(arena, name)] = arenas
    assert len(arena.blocks) == 0
    assert name is None or not exists(name)


def test_more_than_an_address_space_holds_names_the_option() -> None:
    with pytest.raises(ConfigError, match="no memory for .* set a smaller pool_dram_gib"):
        KVArena.resident(
            LAYOUT, (1 << 55) // LAYOUT.block_bytes, shared=False, option="pool_dram_gib"
        )


def test_segments_of_a_killed_process_are_swept() -> None:
    script = (
        "from kvstore.segment import Segment; import time\n"
        "print(Segment.create(4096).name, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        name = child.stdout.readline().strip()
        assert name not in sweep()  # its owner lives
        assert exists(name)
        child.send_signal(signal.SIGKILL)
        child.wait()
        mine = Segment.create(4096)  # sweeps
        assert exists(mine.name) and not exists(name)
        mine.close()
    finally:
        child.kill()
        child.communicate()


def test_a_sweep_between_open_and_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file looks abandoned for an instant; its creator must notice and try again."""
    lock, swept = segment.fcntl.flock, []

    def sweep_first(descriptor: int, flags: int) -> None:
        if not swept:
            swept.append(None)  # before the sweep, which locks as well
            swept.extend(sweep())
        lock(descriptor, flags)

    monkeypatch.setattr(segment, "sweep", list)  # not the one of `create` itself
    monkeypatch.setattr(segment.fcntl, "flock", sweep_first)
    made = Segment.create(4096)
    assert len(swept) >= 2 and exists(made.name) and made.name not in swept
    made.close()
