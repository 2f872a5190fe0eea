"""Cost models from what a GPU's data sheet says and a model's shape: a roofline.

For hardware that nobody has measured yet. Every operation takes the longer of its arithmetic and
its memory traffic, at the share of the data sheet that good kernels reach; all-reduces go over
the links between the GPUs of a node. Steps of engines are longer by what launches and the host
take: `overhead_s` and `gap_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pd.cost.curve import Curve
from pd.cost.model import Attention, CostModel, Link
from pd.cost.shape import ModelShape
from pd.errors import ConfigError

Precision = Literal["bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True)
class GPU:
    """Peak rates without sparsity: bytes/s of memory, FLOP/s, bytes/s a GPU to others of its
    node, to other nodes and to the host. 0 where the hardware has no such arithmetic."""

    memory_bytes_s: float
    memory_bytes: float
    bf16_flops: float
    fp8_flops: float
    fp4_flops: float
    node_bytes_s: float
    network_bytes_s: float
    host_bytes_s: float

    def flops(self, precision: Precision) -> float:
        """Of what weights and activations are multiplied in."""
        return {"bf16": self.bf16_flops, "fp8": self.fp8_flops, "fp4": self.fp4_flops}[precision]


# From the system descriptions of ai-dynamo/aiconfigurator (Apache-2.0), which follow the vendor's
# data sheets; fp4 as on those.
GPUS = {
    "a100": GPU(2.039e12, 80 * 2**30, 312e12, 0.0, 0.0, 300e9, 25e9, 32e9),
    "h100": GPU(3.35e12, 80 * 2**30, 989e12, 1978e12, 0.0, 450e9, 50e9, 64e9),
    "h200": GPU(4.8e12, 141 * 2**30, 989e12, 1978e12, 0.0, 450e9, 50e9, 64e9),
    "b200": GPU(7.7e12, 180 * 2**30, 2250e12, 4500e12, 9000e12, 900e9, 100e9, 128e9),
    "b300": GPU(7.75e12, 268 * 2**30, 2250e12, 4500e12, 13500e12, 900e9, 100e9, 128e9),
    "gb200": GPU(8.0e12, 185 * 2**30, 2500e12, 5000e12, 10000e12, 900e9, 900e9, 64e9),
    "gb300": GPU(8.0e12, 277 * 2**30, 2500e12, 5000e12, 15000e12, 900e9, 900e9, 64e9),
    "l40s": GPU(864e9, 45 * 2**30, 362e12, 733e12, 0.0, 32e9, 50e9, 32e9),
    "rtx-pro-6000": GPU(1.792e12, 95 * 2**30, 468e12, 936e12, 0.0, 64e9, 50e9, 64e9),
}
_WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}  # fp4 with a scale for every 16
_TOKENS = tuple(round(2 ** (power / 2)) for power in range(2, 31))  # knots: 2, 3, 4, 6, 8 ... 32768
_ROWS = (1, 64, 256, 1024)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the data sheet that kernels reach, and what a step costs beside them.

    `gap_s` is what a layer takes between its kernels, `hop_s` the latency of one all-reduce.
    """

    flops: float = 0.7
    attention_flops: float = 0.5
    memory: float = 0.8
    links: float = 0.7
    gap_s: float = 20e-6
    hop_s: float = 10e-6
    overhead_s: float = 0.5e-3


def roofline(
    gpu: GPU,
    shape: ModelShape,
    *,
    tp: int = 1,
    dp: int = 1,
    precision: Precision = "bf16",
    kv_bytes: float = 2.0,
    efficiency: Efficiency = Efficiency(),
) -> CostModel:
    """A model of steps on `tp` * `dp` GPUs of one node.

    With `dp` the attention of every sequence is on `tp` GPUs, and experts are spread over all of
    them; loads are those of all together. Raises ConfigError where that does not fit.
    """
    if tp < 1 or dp < 1 or shape.heads % tp:
        raise ConfigError(f"{shape.heads} heads cannot be split over {tp} GPUs")
    if dp > 1 and not shape.experts:
        raise ConfigError("dp is of models with experts; run a dense one as several nodes")
    if not gpu.flops(precision):
        raise ConfigError(f"this GPU has no {precision} arithmetic")
    work = _Work(gpu, shape, tp, dp, precision, kv_bytes, efficiency)
    return CostModel(
        overhead_s=efficiency.overhead_s,
        linear=Curve((tokens, work.linear_s(tokens)) for tokens in _TOKENS),
        output=Curve((rows, work.output_s(rows)) for rows in _ROWS),
        attention=Attention(
            pair_s=work.pair_s(), context_s=work.context_s(),
            decode=Curve([(1, work.decode_s()), (2, 2 * work.decode_s())]),
        ),
        links=links_of(gpu, tp * dp, efficiency.links),
        about={"tp": tp, "dp": dp, "precision": precision, "source": "roofline of data sheets",
               "kv_bytes_per_token": shape.kv_values * kv_bytes},
    )  # fmt: skip


def links_of(gpu: GPU, gpus: int = 1, share: float = 0.7) -> dict[str, Link]:
    """Ways for the blocks of a node of so many GPUs: within them, to others of the same machine,
    to GPUs of other machines, through host memory, and over a network of 100 Gbit/s they share."""
    return {
        "local": Link(10e-6, gpus * gpu.memory_bytes_s * share / 2),  # read and written
        "nccl": Link(20e-6, gpus * gpu.node_bytes_s * share),
        "rdma": Link(50e-6, gpus * gpu.network_bytes_s * share),
        "shm": Link(50e-6, gpus * gpu.host_bytes_s * share / 2),  # there and back
        "tcp": Link(200e-6, min(12.5e9, gpus * gpu.network_bytes_s) * share),
    }


@dataclass(frozen=True, slots=True)
class _Work:
    """Seconds of each part of a step on the slowest of its GPUs, which all do the same."""

    gpu: GPU
    shape: ModelShape
    tp: int
    dp: int
    precision: Precision
    kv_bytes: float
    efficiency: Efficiency

    def _gemm_s(self, flops: float, num_bytes: float) -> float:
        computing = flops / (self.gpu.flops(self.precision) * self.efficiency.flops)
        reading = num_bytes / (self.gpu.memory_bytes_s * self.efficiency.memory)
        # Neither hides the other wholly where they are about as long.
        return float((computing**4 + reading**4) ** 0.25)

    def linear_s(self, tokens: float) -> float:
        """All layers but the last, of a step with so many tokens on all GPUs together."""
        shape, weight = self.shape, _WEIGHT_BYTES[self.precision]
        attention = shape.layers * shape.attention_weights
        experts_active = shape.active_params - attention
        experts_read = shape.params_read(tokens) - attention
        own = tokens / self.dp
        seconds = self._gemm_s(2 * attention * own / self.tp, weight * attention / self.tp)
        gpus = self.tp * self.dp
        seconds += self._gemm_s(2 * experts_active * tokens / gpus, weight * experts_read / gpus)
        # Norms, rotation and activations read and write some rows of two-byte values.
        moved = 2.0 * shape.layers * own * 12 * shape.hidden
        seconds += moved / (self.gpu.memory_bytes_s * self.efficiency.memory)
        return seconds + shape.layers * (self.efficiency.gap_s + self._reduce_s(tokens))

    def _reduce_s(self, tokens: float) -> float:
        """A layer's two exchanges: all-reduces, or tokens to experts elsewhere and back."""
        gpus = self.tp * self.dp
        if gpus == 1:
            return 0.0
        num_bytes = 2.0 * tokens * self.shape.hidden
        if self.dp > 1:
            num_bytes *= min(self.shape.experts_per_token, gpus) / gpus
        else:
            num_bytes *= 2 * (gpus - 1) / gpus
        link = self.gpu.node_bytes_s * self.efficiency.links
        return 2 * (self.efficiency.hop_s + num_bytes / link)

    def output_s(self, rows: float) -> float:
        params = self.shape.vocab * self.shape.hidden / (self.tp * self.dp)
        computing = 2 * params * rows / (self.gpu.bf16_flops * self.efficiency.flops)
        reading = 2 * params / (self.gpu.memory_bytes_s * self.efficiency.memory)
        return computing + reading

    def pair_s(self) -> float:
        rate = self.gpu.bf16_flops * self.efficiency.attention_flops
        return self.shape.prefill_pair_flops / (rate * self.tp * self.dp)

    def context_s(self) -> float:
        """Reading one token's KV, in the layers that look at all of it. GPUs beyond the number of
        KV heads keep copies of them."""
        shape = self.shape
        split = 1 if shape.latent else min(self.tp, shape.kv_heads)
        num_bytes = shape.kv_values * shape.full_share * self.kv_bytes / (split * self.dp)
        return num_bytes / (self.gpu.memory_bytes_s * self.efficiency.memory)

    def decode_s(self) -> float:
        rate = self.gpu.bf16_flops * self.efficiency.attention_flops * self.tp * self.dp
        return max(self.context_s(), self.shape.decode_pair_flops / rate)
