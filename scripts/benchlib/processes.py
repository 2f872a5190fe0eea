"""CPU time from /proc: of a tree of processes by name, of threads, and of the whole machine."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def children() -> dict[int, list[int]]:
    """Every process's children."""
    found: dict[int, list[int]] = defaultdict(list)
    for pid in _pids():
        try:
            found[int(_stat(Path(f"/proc/{pid}/stat"))[1])].append(pid)
        except OSError:
            continue  # it ended meanwhile
    return found


def descendants(root: int) -> list[int]:
    """A process and everything it started, directly or not."""
    below, todo, found = children(), [root], []
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += below.get(pid, ())
    return found


def title(pid: int) -> str:
    """What a process calls itself: Ray's actors have their class, others their program."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    name = words[0].split(".")[0] if words[0].startswith("ray::") else Path(words[0]).name
    if name.startswith("python") and len(words) > 1:
        scripts = [Path(word).stem for word in words[1:] if word.endswith(".py")]
        name = scripts[0] if scripts else " ".join(words[1:3])
    return name


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def thread_cpu_s(pid: int, name: str) -> float:
    """User and system time of a process's threads of that name. A thread starts with the name
    of the one that starts it, so the pool of threads behind "compute" is counted with it."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            if (task / "comm").read_text().strip() == name:
                fields = _stat(task / "stat")
                total += (int(fields[11]) + int(fields[12])) * _TICK_S
    return total


def busy_s() -> float:
    """Time that all cores of the machine have not been idle, whoever used them."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (
        int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S


class CpuMeter:
    """CPU seconds that each kind of process of a tree takes between `start` and `stop`.

    `names` gives processes names of their own; of these, threads called "compute" are counted
    apart, as `NAME compute`. The others have the name of their program.
    """

    def __init__(self, root: int, names: dict[int, str] | None = None) -> None:
        self._root = root
        self._names = names or {}
        self._before: dict[tuple[int, str], float] = {}
        self._busy_before = 0.0

    def start(self) -> None:
        self._before = self._read()
        self._busy_before = busy_s()

    def stop(self) -> dict[str, float]:
        """Seconds by name, and `rest of the machine`: what was not of this tree."""
        after, busy = self._read(), busy_s() - self._busy_before
        taken: dict[str, float] = defaultdict(float)
        for (pid, part), seconds in after.items():
            try:
                name = (self._names.get(pid) or title(pid)) + part
            except OSError:
                continue
            taken[name] += seconds - self._before.get((pid, part), 0.0)
        taken["rest of the machine"] = max(0.0, busy - sum(taken.values()))
        return {name: round(s, 3) for name, s in sorted(taken.items(), key=lambda x: -x[1])}

    def _read(self) -> dict[tuple[int, str], float]:
        times: dict[tuple[int, str], float] = {}
        for pid in descendants(self._root):
            try:
                times[pid, ""] = cpu_s(pid)
                if pid in self._names:
                    compute_s = thread_cpu_s(pid, "compute")
                    times[pid, ""] -= compute_s
                    times[pid, " compute"] = compute_s
            except OSError:
                continue
        return times


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _stat(path: Path) -> list[str]:
    """The fields after the name, which may hold spaces: field 0 is the state."""
    return path.read_text().rpartition(")")[2].split()
