"""Mooncake's published traces by name: the prefix blocks of real requests, by id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pd.workload.mooncake import SOURCE, load_mooncake

DEFAULT_DIR = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "traces"


@dataclass(frozen=True)
class Trace:
    """Prompts in order of arrival, each a tuple of block ids; `times_s` since the first."""

    name: str
    times_s: list[float]
    prompts: list[tuple[int, ...]]

    @property
    def num_blocks(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_unique(self) -> int:
        return len({block for prompt in self.prompts for block in prompt})


def find_trace(folder: Path, name: str) -> Path:
    """The file of "conversation" or "synthetic". FileNotFoundError says where to get it."""
    stems = (f"mooncake_{name}", f"{name}_trace")
    names = [f"{stem}.jsonl{suffix}" for stem in stems for suffix in (".gz", "")]
    path = next((folder / each for each in names if (folder / each).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"no {name} trace in {folder}: looked for {', '.join(names)}. Get {name}_trace.jsonl "
            f"from {SOURCE}, and name its folder with --traces."
        )
    return path


def load_trace(folder: Path, name: str) -> Trace:
    """`name` is "conversation" or "synthetic"; errors are `find_trace`'s."""
    path = find_trace(folder, name)
    arrivals = load_mooncake(path, spread=False).arrivals
    return Trace(name, [each.time_s for each in arrivals], [each.prefix for each in arrivals])
