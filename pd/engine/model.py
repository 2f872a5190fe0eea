"""One decoder for all supported families, over flat batches of tokens and a paged KV arena.

Legend: T tokens of the flat batch, R rows whose logits are wanted, H query heads, K kv heads,
D head_dim, E hidden, F intermediate, V vocabulary, B blocks of the arena, P block_size, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pd.engine.rotary import cos_sin_table
from pd.engine.spec import ModelSpec
from pd.engine.weights import WeightSource
from pd_kernels.linear import Linear, make_linear
from pd_kernels.meta import AttentionMeta
from pd_kernels.ops import Ops

if TYPE_CHECKING:
    from pd_kernels.cpu_decoder import CpuDecoder


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer. `qkv` yields q, k, v side by side, `gate_up` gate and up."""

    attention_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    window: int | None


class Model:
    """Weights and forward pass. Activations have `compute_dtype`, weights `storage_dtype`."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightSource,
        ops: Ops,
        *,
        device: torch.device,
        storage_dtype: torch.dtype,
        compute_dtype: torch.dtype,
        max_positions: int,
    ) -> None:
        self.spec = spec
        self._ops = ops
        self._compute_dtype = compute_dtype
        builder = _Builder(spec, weights, device, storage_dtype, compute_dtype)
        self._embedding = weights.fused(
            ["model.embed_tokens.weight"], [(spec.vocab_size, spec.hidden_size)]
        )
        self._layers = [builder.layer(index) for index in range(spec.num_layers)]
        self._final_norm = builder.norm("model.norm", spec.hidden_size)
        if spec.tie_embeddings:
            self._lm_head = make_linear(
                self._embedding, None, device=device, storage_dtype=storage_dtype
            )
        else:
            self._lm_head = builder.linear(["lm_head"], [spec.vocab_size], spec.hidden_size)
        weights.finish()
        self._cos_sin = cos_sin_table(spec.rope, spec.head_dim, max_positions, device)
        self._body = self._fused_body()

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        slots: Tensor,
        meta: AttentionMeta,
        logit_rows: Tensor,
    ) -> Tensor:
        """Run T tokens, storing their KV; float32 logits [R, V] of the rows asked for.

        token_ids, positions, slots: int64 [T]; slot = block * P + offset. kv: the arena,
        [B, L, 2, K, P, D]. logit_rows: int64 [R], ascending; R may be 0, and then
        nothing is computed that no later token needs.
        """
        ops, eps = self._ops, self.spec.rms_norm_eps
        last = len(self._layers) - 1
        residual = functional.embedding(token_ids, self._embedding).to(self._compute_dtype)
        first = 0
        if self._body is not None:
            self._body.run(residual, positions, kv, slots, meta)
            first = last
        hidden = ops.rms_norm(residual, self._layers[first].attention_norm, eps)
        for index, layer in enumerate(self._layers[first:], first):
            if index > first:
                hidden, residual = ops.add_rms_norm(hidden, residual, layer.attention_norm, eps)
            queries = self._store_kv(layer, index, hidden, positions, kv, slots)
            if index == last and logit_rows.shape[0] == 0:
                break
            attended = ops.attention(queries, kv, index, meta, self.spec.scale, layer.window)
            attended = attended.view(-1, self.spec.q_size)
            if index == last and logit_rows.shape[0] != attended.shape[0]:
                attended, residual = attended[logit_rows], residual[logit_rows]
            hidden = layer.output(attended)
            hidden, residual = ops.add_rms_norm(hidden, residual, layer.mlp_norm, eps)
            hidden = layer.down(ops.silu_mul(layer.gate_up(hidden)))
        else:
            hidden, _ = ops.add_rms_norm(hidden, residual, self._final_norm, eps)
            return self._lm_head(hidden).float()
        return hidden.new_empty((0, self.spec.vocab_size), dtype=torch.float32)

    def _fused_body(self) -> CpuDecoder | None:
        """All layers but the last, which drops rows, as one kernel; None where there is none."""
        if self._ops.name != "cpu":
            return None
        from pd_kernels.cpu_decoder import CpuDecoder

        layers, spec = self._layers[:-1], self.spec
        if not CpuDecoder.fits(layers):
            return None
        return CpuDecoder(
            layers,
            num_heads=spec.num_heads,
            head_dim=spec.head_dim,
            eps=spec.rms_norm_eps,
            scale=spec.scale,
            cos_sin=self._cos_sin,
        )

    def _store_kv(
        self,
        layer: Layer,
        index: int,
        hidden: Tensor,
        positions: Tensor,
        kv: Tensor,
        slots: Tensor,
    ) -> Tensor:
        """Project [T, E], write keys and values to the arena; the rotated queries [T, H, D]."""
        head_dim, q_end = self.spec.head_dim, self.spec.q_size
        k_end = q_end + self.spec.kv_size
        qkv = layer.qkv(hidden)
        count = qkv.shape[0]
        q = qkv[:, :q_end].view(count, -1, head_dim)
        k = qkv[:, q_end:k_end].view(count, -1, head_dim)
        v = qkv[:, k_end:].view(count, -1, head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._head_norm(q, layer.q_norm), self._head_norm(k, layer.k_norm)
        self._ops.rotary(q, k, positions, self._cos_sin)
        self._ops.write_kv(k, v, kv, index, slots)
        return q

    def _head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        rows = x.reshape(-1, self.spec.head_dim)
        return self._ops.rms_norm(rows, weight, self.spec.rms_norm_eps).view(x.shape)


class _Builder:
    """Turns checkpoint names into layers, one tensor at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightSource,
        device: torch.device,
        storage_dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._device = device
        self._storage_dtype = storage_dtype
        self._compute_dtype = compute_dtype

    def layer(self, index: int) -> Layer:
        spec, prefix = self._spec, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        norm, linear = self.norm, self.linear
        return Layer(
            attention_norm=norm(f"{prefix}.input_layernorm", spec.hidden_size),
            qkv=linear(
                [f"{attention}.{part}_proj" for part in "qkv"],
                [spec.q_size, spec.kv_size, spec.kv_size],
                spec.hidden_size,
                bias=spec.qkv_bias,
            ),
            q_norm=norm(f"{attention}.q_norm", spec.head_dim) if spec.qk_norm else None,
            k_norm=norm(f"{attention}.k_norm", spec.head_dim) if spec.qk_norm else None,
            output=linear(
                [f"{attention}.o_proj"], [spec.hidden_size], spec.q_size, bias=spec.o_bias
            ),
            mlp_norm=norm(f"{prefix}.post_attention_layernorm", spec.hidden_size),
            gate_up=linear(
                [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
                [spec.intermediate_size] * 2,
                spec.hidden_size,
                bias=spec.mlp_bias,
            ),
            down=linear(
                [f"{mlp}.down_proj"],
                [spec.hidden_size],
                spec.intermediate_size,
                bias=spec.mlp_bias,
            ),
            window=spec.windows[index],
        )

    def norm(self, name: str, size: int) -> Tensor:
        return self._weights.fused([f"{name}.weight"], [(size,)], self._compute_dtype)

    def linear(
        self, names: list[str], outputs: list[int], inputs: int, *, bias: bool = False
    ) -> Linear:
        weight = self._weights.fused(
            [f"{name}.weight" for name in names], [(rows, inputs) for rows in outputs]
        )
        offset = None
        if bias:
            offset = self._weights.fused(
                [f"{name}.bias" for name in names],
                [(rows,) for rows in outputs],
                self._compute_dtype,
            )
        return make_linear(weight, offset, device=self._device, storage_dtype=self._storage_dtype)
