"""Steps out of tables that others measured: of layers, of single operators, of whole engines.

Each function gives `Sample`s to fit a model to. The tables' formats are those of the projects
they come from: LLMServingSim's profiler (layers), aiconfigurator (operators), DistServe (fits).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pd.cost.load import Sample, StepLoad
from pd.cost.shape import ModelShape
from pd.errors import ConfigError

# Layers of a decoder as LLMServingSim names them, and how often each runs in a layer.
_IN_LAYER = {
    "layernorm": 2, "qkv_proj": 1, "rotary_emb": 1, "o_proj": 1, "gate_up_proj": 1, "act_fn": 1,
    "down_proj": 1,
}  # fmt: skip
_ONCE = ("embedding", "final_layernorm")
_PER_SEQUENCE = ("lm_head", "sampler")


class Table:
    """A measured function of one count: between the points a line, outside as at the ends, in
    proportion to the count beyond the last."""

    def __init__(self, points: Mapping[float, float]) -> None:
        self._counts = sorted(points)
        self._values = [points[count] for count in self._counts]

    def __call__(self, count: float) -> float:
        counts, values = self._counts, self._values
        if count <= counts[0]:
            return values[0]
        if count >= counts[-1]:
            return values[-1] * count / counts[-1]
        place = bisect_left(counts, count)
        low, high = counts[place - 1], counts[place]
        share = (count - low) / (high - low)
        return values[place - 1] * (1 - share) + values[place] * share


def rows(path: str | Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, perhaps compressed by gzip, which must have these columns."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the table {path}: {error.strerror}") from error
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    reader = csv.DictReader(io.StringIO(text))
    missing = set(columns) - set(reader.fieldnames or ())
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(sorted(missing))}")
    yield from reader


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        raise ConfigError(f"{column} must be a number, not '{row[column]}'") from None


# ------------------------------------------------------------------ layers (LLMServingSim)
def layer_samples(
    attention: str | Path, dense: str | Path, per_sequence: str | Path, num_layers: int
) -> list[Sample]:
    """A step for every row of the attention table, its other layers looked up. `attention` has
    prefill_chunk, kv_prefill, n_decode, kv_decode and time_us of one layer, one chunk at most;
    `dense` layer, tokens and time_us; `per_sequence` layer, sequences and time_us."""
    step = layer_times(dense, per_sequence, num_layers)
    samples = []
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
    for row in rows(attention, *columns):
        chunk, start, seqs, context = (int(_number(row, name)) for name in columns[:4])
        load = StepLoad.chunk(chunk, start) if chunk else StepLoad()
        load += StepLoad.decode(seqs, seqs * context)
        attention_s = num_layers * _number(row, "time_us") * 1e-6
        samples.append(Sample(load, step(load) + attention_s))
    return samples


def layer_times(
    dense: str | Path, per_sequence: str | Path, num_layers: int
) -> Callable[[StepLoad], float]:
    """Seconds of everything but attention."""
    by_tokens = _by_layer(dense, "tokens")
    by_rows = _by_layer(per_sequence, "sequences")
    for name in (*_IN_LAYER, *_ONCE):
        if name not in by_tokens:
            raise ConfigError(f"{dense} has no layer '{name}'")
    for name in _PER_SEQUENCE:
        if name not in by_rows:
            raise ConfigError(f"{per_sequence} has no layer '{name}'")

    def seconds(load: StepLoad) -> float:
        layer = sum(times * by_tokens[name](load.tokens) for name, times in _IN_LAYER.items())
        once = sum(by_tokens[name](load.tokens) for name in _ONCE)
        output = sum(by_rows[name](load.rows) for name in _PER_SEQUENCE)
        return (num_layers * layer + once + output) * 1e-6

    return seconds


def _by_layer(path: str | Path, count: str) -> dict[str, Table]:
    points: dict[str, dict[float, float]] = {}
    for row in rows(path, "layer", count, "time_us"):
        points.setdefault(row["layer"], {})[_number(row, count)] = _number(row, "time_us")
    return {name: Table(found) for name, found in points.items()}


# ------------------------------------------------------------------ fits (DistServe)
def distserve_samples(path: str | Path, engine: str, model: str, tp: int) -> list[Sample]:
    """Steps as DistServe's fits predict them, of prompts and of decode batches on a grid. Its
    file holds [a, b, c] in ms: prefill = a + b * tokens + c * sum of squares, decode = a + b *
    context + c * batch, with other figures from a threshold of the batch on."""
    data = json.loads(Path(path).read_text())
    try:
        found: Mapping[str, Any] = data[engine][model][str(tp)]
    except KeyError as error:
        raise ConfigError(f"{path} has no fit of {engine}, {model}, tp {tp}: no {error}") from None
    a, b, c = found["prefill"]
    samples = []
    for tokens in (16, 64, 128, 256, 512, 768, 1024, 1536, 2048):
        seconds = (a + b * tokens + c * tokens * tokens) * 1e-3
        samples.append(Sample(StepLoad.chunk(tokens), seconds))
    threshold = found["decoding_large_small_bs_threshold"]
    for batch in (1, 2, 4, 8, 16, 32, 64, 94, 95, 128, 192, 256):
        a, b, c = found["decoding_smallbs" if batch < threshold else "decoding_largebs"]
        for each in (64, 256, 512, 1024, 2048):
            context = batch * each
            seconds = (a + b * context + c * batch) * 1e-3
            samples.append(Sample(StepLoad.decode(batch, context), seconds))
    return samples


# ------------------------------------------------------------------ operators (aiconfigurator)
class Operators:
    """Measured GEMMs, attention and all-reduces of one GPU.

    `gemm` has gpu, m, n, k and latency_ms; `prefill` gpu, q_heads, kv_heads, batch, isl and
    latency_ms of one layer; `decode` the same with kv_len; `collectives` gpu, op, num_gpus,
    message_elems (of two bytes) and latency_ms.
    """

    def __init__(
        self,
        gpu: str,
        gemm: str | Path,
        prefill: str | Path,
        decode: str | Path,
        collectives: str | Path,
        memory_bytes_s: float,
    ) -> None:
        self.gpu = gpu
        self._memory_bytes_s = memory_bytes_s
        gemms: dict[tuple[int, int], dict[float, float]] = {}
        for row in self._rows(gemm, "m", "n", "k"):
            key = int(row["n"]), int(row["k"])
            gemms.setdefault(key, {})[float(row["m"])] = _number(row, "latency_ms") * 1e-3
        self._gemms = {key: Table(points) for key, points in gemms.items()}
        self.prefill = self._attention(prefill, "isl")
        self.decode = self._attention(decode, "kv_len")
        reduces: dict[int, dict[float, float]] = {}
        for row in self._rows(collectives, "op", "num_gpus", "message_elems"):
            if row["op"] == "all_reduce":
                points = reduces.setdefault(int(row["num_gpus"]), {})
                points[float(row["message_elems"])] = _number(row, "latency_ms") * 1e-3
        self._reduces = {num: Table(points) for num, points in reduces.items()}

    def _rows(self, path: str | Path, *columns: str) -> Iterator[dict[str, str]]:
        found = [r for r in rows(path, "gpu", *columns, "latency_ms") if r["gpu"] == self.gpu]
        if not found:
            raise ConfigError(f"{path} has no rows of '{self.gpu}'")
        yield from found

    def _attention(
        self, path: str | Path, length: str
    ) -> dict[tuple[int, int], dict[tuple[int, int], float]]:
        found: dict[tuple[int, int], dict[tuple[int, int], float]] = {}
        for row in self._rows(path, "q_heads", "kv_heads", "batch", length):
            heads = int(row["q_heads"]), int(row["kv_heads"])
            key = int(row["batch"]), int(row[length])
            found.setdefault(heads, {})[key] = _number(row, "latency_ms") * 1e-3
        return found

    def gemm_s(self, tokens: float, out: int, width: int) -> float:
        """A measured shape, or the one nearest in size, in proportion to its weights."""
        table = self._gemms.get((out, width))
        if table is not None:
            return table(tokens)
        near = min(self._gemms, key=lambda nk: abs(nk[0] / out - 1) + 2 * abs(nk[1] / width - 1))
        return self._gemms[near](tokens) * (out * width) / (near[0] * near[1])

    def all_reduce_s(self, elements: float, tp: int) -> float:
        if tp == 1:
            return 0.0
        if tp not in self._reduces:
            known = ", ".join(map(str, sorted(self._reduces)))
            raise ConfigError(f"no all-reduce of {tp} GPUs was measured, only of {known}")
        return self._reduces[tp](elements)

    def samples(self, shape: ModelShape, tp: int = 1) -> list[Sample]:
        """Prefills of whole prompts and decode steps of a dense model split over `tp` GPUs."""
        heads = shape.heads // tp, max(1, shape.kv_heads // tp)
        if heads not in self.prefill or heads not in self.decode:
            raise ConfigError(
                f"attention with {heads[0]} and {heads[1]} heads was not measured on {self.gpu}"
            )
        samples = []
        for (batch, length), seconds in self.prefill[heads].items():
            if length >= 16 and batch * length <= 16384:
                load = StepLoad()
                for _ in range(batch):
                    load += StepLoad.chunk(length)
                samples.append(self._sample(shape, tp, load, seconds))
        for (batch, length), seconds in self.decode[heads].items():
            if batch <= 512 and length >= 64:
                load = StepLoad.decode(batch, batch * length)
                samples.append(self._sample(shape, tp, load, seconds))
        return samples

    def _sample(self, shape: ModelShape, tp: int, load: StepLoad, attention_s: float) -> Sample:
        tokens = load.tokens
        qkv, out, gate_up, down = shape.gemms
        layer = (
            self.gemm_s(tokens, qkv[0] // tp, qkv[1])
            + self.gemm_s(tokens, out[0], out[1] // tp)
            + self.gemm_s(tokens, gate_up[0] // tp, gate_up[1])
            + self.gemm_s(tokens, down[0], down[1] // tp)
            + attention_s
            + 2 * self.all_reduce_s(tokens * shape.hidden, tp)
            + self._elementwise_bytes(shape, tp, tokens) / self._memory_bytes_s
        )
        output = self.gemm_s(load.rows, shape.vocab // tp, shape.hidden)
        return Sample(load, shape.layers * layer + output)

    @staticmethod
    def _elementwise_bytes(shape: ModelShape, tp: int, tokens: int) -> float:
        """What a layer's norms, rotation and activation read and write, two bytes a value: two
        norms that add (read 2, write 2), rotated heads, gate and up in and their product out."""
        heads = 2 * (shape.heads + shape.kv_heads) * shape.head_dim / tp
        return 2.0 * tokens * (8 * shape.hidden + heads + 3 * shape.intermediate / tp)
