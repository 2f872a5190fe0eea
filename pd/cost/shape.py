"""`ModelShape`: what a decoder-only model asks of the hardware, whatever its family.

Operations, weights and KV of dense and mixture-of-experts models, with grouped-query or latent
attention; the sizes of the well-known ones are here, those of others come from a `ModelSpec`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pd.engine.spec import ModelSpec
from pd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model; `kv_heads` and `head_dim` are those of its KV cache.

    With experts, `intermediate` is that of the leading `dense_layers`, and every other layer has
    `experts` of `expert_intermediate`, `experts_per_token` of which run for a token, beside
    `shared_experts` that always do. With latent attention (`latent`: values that a token keeps
    in a layer instead of keys and values) `attention_params` says what its projections hold, and
    `head_dim` is the mean of a key's and a value's size.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    latent: int = 0
    attention_params: int = 0
    window: int = 0  # of every other layer, in tokens; 0: all layers see everything

    @classmethod
    def of(cls, spec: ModelSpec) -> ModelShape:
        """That of a model folder's `config.json`."""
        return cls(
            spec.num_layers, spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.head_dim,
            spec.intermediate_size, spec.vocab_size,
        )  # fmt: skip

    @property
    def gemms(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of a dense layer's four matrix products."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return (
            (qkv, self.hidden),
            (self.hidden, self.heads * self.head_dim),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )

    @property
    def attention_weights(self) -> int:
        """Parameters of one layer's attention projections."""
        if self.attention_params:
            return self.attention_params
        return sum(out * width for out, width in self.gemms[:2])

    @property
    def expert_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def active_params(self) -> int:
        """Parameters that a token runs through, those of the output layer left out."""
        dense = 3 * self.hidden * self.intermediate * (self.layers - self.expert_layers)
        chosen = self.experts_per_token + self.shared_experts
        expert = 3 * self.hidden * self.expert_intermediate * chosen * self.expert_layers
        return self.layers * self.attention_weights + dense + expert

    def params_read(self, tokens: float) -> float:
        """Parameters that a step of so many tokens reads, those of the output layer left out: of
        the experts those that at least one token chose, where all choose alike."""
        if not self.experts:
            return self.active_params
        missed: float = (1.0 - self.experts_per_token / self.experts) ** tokens
        expert = 3 * self.hidden * self.expert_intermediate * self.expert_layers
        base = self.active_params - expert * self.experts_per_token
        return base + expert * self.experts * (1.0 - missed)

    @property
    def params(self) -> float:
        """All of them, embedding and output layer counted once each."""
        return self.params_read(1e12) + 2 * self.vocab * self.hidden

    @property
    def full_share(self) -> float:
        """Of the layers, those whose attention sees everything."""
        return 0.5 if self.window else 1.0

    @property
    def prefill_pair_flops(self) -> float:
        """Operations for a query-key pair of a prompt, over all layers that see it."""
        return 4.0 * self.layers * self.full_share * self.heads * self.head_dim

    @property
    def decode_pair_flops(self) -> float:
        """The same while decoding, where latent attention multiplies with what it keeps."""
        return 4.0 * self.layers * self.full_share * self.heads * (self.latent or self.head_dim)

    @property
    def kv_values(self) -> int:
        """Numbers that a token keeps in all layers together."""
        return self.layers * (self.latent or 2 * self.kv_heads * self.head_dim)


SHAPES = {
    "llama-3.1-8b": ModelShape(32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3.1-70b": ModelShape(80, 8192, 64, 8, 128, 28672, 128256),
    "qwen3-32b": ModelShape(64, 5120, 64, 8, 128, 25600, 151936),
    "deepseek-r1": ModelShape(
        61, 7168, 128, 1, 160, 18432, 129280, experts=256, experts_per_token=8,
        expert_intermediate=2048, shared_experts=1, dense_layers=3, latent=576,
        # q_a, q_b, kv_a, kv_b and o of one layer
        attention_params=7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256
        + 128 * 128 * 7168,
    ),
    "kimi-k2.5": ModelShape(
        61, 7168, 64, 1, 160, 18432, 163840, experts=384, experts_per_token=8,
        expert_intermediate=2048, shared_experts=1, dense_layers=1, latent=576,
        attention_params=7168 * 1536 + 1536 * 64 * 192 + 7168 * 576 + 512 * 64 * 256
        + 64 * 128 * 7168,
    ),
    "gpt-oss-120b": ModelShape(
        36, 2880, 64, 8, 64, 2880, 201088, experts=128, experts_per_token=4,
        expert_intermediate=2880, window=128,
    ),
}  # fmt: skip


def shape_of(name: str) -> ModelShape:
    """A well-known one by name."""
    try:
        return SHAPES[name]
    except KeyError:
        raise ConfigError(f"no shape of '{name}' is known; known are {', '.join(SHAPES)}") from None
