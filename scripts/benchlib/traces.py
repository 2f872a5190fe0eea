"""Mooncake's published traces: the prefix blocks of real requests, by id.

kvcache-ai/Mooncake, FAST25-release/traces. A line of JSON a request: `timestamp` in ms,
`input_length`, `output_length` in tokens, and `hash_ids`, one for every 512 tokens of the prompt.
An id stands for a block and everything before it, so equal ids mean equal prefixes. A prompt's
last block may be partial.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

SOURCE = "https://github.com/kvcache-ai/Mooncake, FAST25-release/traces"
BLOCK_TOKENS = 512
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


def load_trace(folder: Path, name: str) -> Trace:
    """`name` is "conversation" or "synthetic". FileNotFoundError says where to get it."""
    stems = (f"mooncake_{name}", f"{name}_trace")
    names = [f"{stem}.jsonl{suffix}" for stem in stems for suffix in (".gz", "")]
    path = next((folder / each for each in names if (folder / each).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"no {name} trace in {folder}: looked for {', '.join(names)}. Get {name}_trace.jsonl "
            f"from {SOURCE}, and name its folder with --traces."
        )
    times, prompts = [], []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            row = json.loads(line)
            times.append(row["timestamp"] / 1e3)
            prompts.append(tuple(row["hash_ids"]))
    return Trace(name, times, prompts)
