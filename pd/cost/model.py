"""`CostModel`: how long a step, a run of decode steps or a transfer takes on some hardware.

    step = overhead
         + linear layers(tokens)                  a curve: flat at first, where reading the
                                                  weights is the cost, then as steep as the GEMMs
         + output layer and sampling(sequences)   a curve
         + attention: of prefill (query-key pairs, KV read, chunks), of decode (a curve of the
           KV read, sequences), and what decode costs more in a step that has chunks, too

Every coefficient is in seconds and none is negative, so a step never gets faster by more work.
Pure: the coordinator, the nodes, the simulator and the tuner ask the same object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pd.cost.curve import Curve
from pd.cost.load import StepLoad
from pd.errors import ConfigError

__all__ = ["Attention", "CostModel", "Link", "StepLoad"]


FACTORS = ("pair_s", "context_s", "chunk_s", "decode_seq_s", "mixed_seq_s", "pad_s")


def _check(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"a cost model's {name} must be 0 or more, not {value!r}")


@dataclass(frozen=True, slots=True)
class Attention:
    """Seconds of all layers' attention together.

    prefill = pair_s * pairs + context_s * context + chunk_s * chunks
    decode  = decode(context) + decode_seq_s * sequences
    mixed   = mixed(decode context) + mixed_seq_s * sequences + pad_s * tokens * sequences: what
              decoding costs in addition beside chunks, where a kernel made for long queries serves
              both and launches as many tiles for every sequence as the longest chunk has
    """

    pair_s: float = 0.0
    context_s: float = 0.0
    chunk_s: float = 0.0
    decode: Curve = Curve()  # noqa: RUF009
    decode_seq_s: float = 0.0
    mixed: Curve = Curve()  # noqa: RUF009
    mixed_seq_s: float = 0.0
    pad_s: float = 0.0

    def __post_init__(self) -> None:
        for name in FACTORS:
            _check(name, getattr(self, name))

    def __call__(self, load: StepLoad) -> float:
        seconds = 0.0
        if load.num_chunks:
            seconds += (
                self.pair_s * load.prefill_pairs
                + self.context_s * load.prefill_context
                + self.chunk_s * load.num_chunks
            )
        if load.decode_seqs:
            seconds += self.decode(load.decode_context) + self.decode_seq_s * load.decode_seqs
            if load.num_chunks:
                seconds += (
                    self.mixed(load.decode_context)
                    + (self.mixed_seq_s + self.pad_s * load.prefill_tokens) * load.decode_seqs
                )
        return seconds


@dataclass(frozen=True, slots=True)
class Link:
    """A way for blocks to go: seconds before the first byte, and bytes a second after it."""

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.latency_s < math.inf and 0.0 < self.bytes_per_s < math.inf):
            raise ConfigError(
                f"a link needs a latency of 0 s or more and a bandwidth above 0, not "
                f"{self.latency_s:g} s and {self.bytes_per_s:g} bytes/s"
            )

    @classmethod
    def through(cls, seconds: Mapping[int, float]) -> Link:
        """The link whose times are nearest to these, {bytes: seconds}, in relative terms."""
        weights = {size: taken**-2 for size, taken in seconds.items()}
        total = sum(weights.values())
        x = sum(weights[size] * size for size in seconds) / total
        y = sum(weights[size] * taken for size, taken in seconds.items()) / total
        rise = sum(weights[size] * (size - x) * (taken - y) for size, taken in seconds.items())
        run = sum(weights[size] * (size - x) ** 2 for size in seconds)
        slope = max(rise / run, 1e-15)
        return cls(max(0.0, y - slope * x), 1.0 / slope)


@dataclass(slots=True)
class DecodeRun:
    """Decode-only steps of the same sequences: the first reads `context` tokens, and `each` takes
    so many seconds besides what `attention` takes for that."""

    num_seqs: int
    context: int
    each: float
    attention: Curve

    def takes_s(self, num_steps: int) -> float:
        """Seconds of the first so many of them."""
        if self.num_seqs <= 0 or num_steps <= 0:
            return 0.0
        reading_s = self.attention.sum(self.context, self.num_seqs, num_steps)
        return num_steps * self.each + reading_s


@dataclass(frozen=True)
class CostModel:
    """Durations on one kind of hardware for one model. Immutable.

    `about` says in words what it is of and where its figures are from: model, hardware, tp,
    dtype, source, licence, date; `fit` how well it agrees with what it was fitted to.
    """

    overhead_s: float = 0.0
    linear: Curve = Curve()  # noqa: RUF009
    output: Curve = Curve()  # noqa: RUF009
    attention: Attention = Attention()
    links: Mapping[str, Link] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("overhead_s", self.overhead_s)

    def step_s(self, load: StepLoad) -> float:
        """Seconds of one step; 0 of one without any work."""
        tokens = load.prefill_tokens + load.decode_seqs
        if tokens <= 0:
            return 0.0
        return (
            self.overhead_s
            + self.linear(tokens)
            + self.output(load.num_chunks + load.decode_seqs)
            + self.attention(load)
        )

    def decode_steps_s(self, num_seqs: int, context: int, num_steps: int) -> float:
        """Seconds of that many decode-only steps in a row: `context` is that of all sequences
        together in the first, and grows by one token a sequence and step."""
        return self.decode_run(num_seqs, context).takes_s(num_steps)

    def decode_run(self, num_seqs: int, context: int) -> DecodeRun:
        """Such steps, however many, for who asks about the same ones again and again."""
        each = self.overhead_s + self.linear(num_seqs) + self.output(num_seqs)
        each += self.attention.decode_seq_s * num_seqs
        return DecodeRun(num_seqs, context, each, self.attention.decode)

    def prefill_s(self, new: int, cached: int = 0, chunk: int | None = None) -> float:
        """Seconds to compute `new` tokens of a prompt after `cached` ones, alone: in one step,
        or in steps of at most `chunk` tokens."""
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk has at least one token, not {chunk}")
        seconds = 0.0
        while new > 0:
            size = new if chunk is None else min(chunk, new)
            seconds += self.step_s(StepLoad.chunk(size, cached))
            new, cached = new - size, cached + size
        return seconds

    def transfer_s(self, num_bytes: int, path: str) -> float:
        """Seconds for one transfer of so many bytes over an otherwise idle path."""
        try:
            link = self.links[path]
        except KeyError:
            known = ", ".join(sorted(self.links)) or "none at all"
            raise ConfigError(f"this cost model has no path '{path}'; it has {known}") from None
        return link.latency_s + num_bytes / link.bytes_per_s

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Read a file that `save` wrote. ConfigError where it is none, naming what is wrong."""
        from pd.cost.store import read

        return read(path)

    def save(self, path: str | Path) -> None:
        """Write it as JSON that says its units."""
        from pd.cost.store import write

        write(self, path)
