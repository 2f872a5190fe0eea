"""`Engine`: what every node computes with. It turns a `BatchPlan` into drawn tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pd.engine.arena_memory import allocate_kv, free_gpu_bytes, wrap_kv
from pd.engine.batch import BatchBuilder
from pd.engine.model import Model
from pd.engine.precision import choose_device, choose_precision, kv_layout
from pd.engine.sampler import Sampler, SampleRow
from pd.engine.spec import ModelSpec
from pd.engine.staging import Staging, attention_meta
from pd.engine.weights import LoadFormat, open_weights
from pd.errors import ConfigError
from pd.types import BatchPlan, Sequence, StepResult
from pd_kernels.ops import Ops, select_ops


class Engine:
    """A model on a device with its KV arena and sampler. One step at a time, one thread.

    spec, layout, device, num_blocks, block_size, max_model_len say what was loaded.
    `kv` is the arena, [num_blocks, layers, 2, kv_heads, block_size, head_dim]; `ops` its kernels.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        load_format: LoadFormat = "auto",
        seed: int = 0,
        block_size: int = 16,
        max_model_len: int | None = None,
        num_blocks: int | None = None,
        kv_bytes: int | None = None,
        kv_buffer: object | None = None,
        gpu_memory_utilization: float = 0.9,
        max_num_batched_tokens: int = 512,
        max_num_seqs: int = 256,
        ops: Ops | None = None,
    ) -> None:
        """Load the model and allocate the arena.

        The arena is `kv_buffer` if given (writable host memory, CPU only), else `num_blocks`
        blocks, else as many as fit in `kv_bytes`, else (GPU only) what
        `gpu_memory_utilization` leaves beside weights and a full-size step.
        Raises ModelError for the model's files and ConfigError for the options.
        """
        self.spec = ModelSpec.from_dir(model_dir, load_format=load_format, seed=seed)
        self.device = choose_device(device)
        self.precision = choose_precision(dtype, self.device, self.spec)
        self.layout = kv_layout(self.spec, self.precision, block_size)
        self.block_size = block_size
        self.max_model_len = _max_model_len(self.spec, max_model_len)
        self.ops = select_ops(self.device) if ops is None else ops
        source = open_weights(
            model_dir,
            dtype=self.precision.storage,
            device=self.device,
            load_format=load_format,
            seed=seed,
        )
        self.model = Model(
            self.spec,
            source,
            self.ops,
            device=self.device,
            storage_dtype=self.precision.storage,
            compute_dtype=self.precision.compute,
            max_positions=self.max_model_len,
        )
        if kv_buffer is not None:
            if self.device.type != "cpu":
                raise ConfigError("a KV buffer in host memory serves the CPU only")
            self.kv = wrap_kv(self.layout, kv_buffer)
        else:
            if num_blocks is None:
                if kv_bytes is None:
                    kv_bytes = self._spare_bytes(
                        gpu_memory_utilization, max_num_batched_tokens, max_num_seqs
                    )
                num_blocks = kv_bytes // self.layout.block_bytes
            if num_blocks < 1:
                raise ConfigError(
                    f"no room for KV: one block of {block_size} tokens takes "
                    f"{self.layout.block_bytes} bytes; give the cache more memory"
                )
            self.kv = allocate_kv(self.layout, num_blocks, self.device)
        self.num_blocks = int(self.kv.shape[0])
        self._max_num_batched_tokens = max_num_batched_tokens
        self._builder = BatchBuilder(
            block_size, self.layout.num_blocks_for(self.max_model_len), max_num_seqs
        )
        self._staging = Staging(self.device)
        self._sampler = Sampler(self.spec.vocab_size, self.device)

    def execute(self, plan: BatchPlan) -> StepResult:
        """Run one step. When it returns, the KV of all its tokens is in the arena.

        Samples come in the order of the plan: for every chunk its `sample` sequences, then
        the decodes. Sequences are only read.
        """
        if plan.copies:
            self._copy(plan.copies)
        if not plan:
            return StepResult()
        flat, meta = attention_meta(self._builder.build(plan), self._staging)
        token_ids, positions, slots, logit_rows, *draws = flat
        logits = self.model.forward(token_ids, positions, self.kv, slots, meta, logit_rows)
        rows = [sample_row(seq) for seq in _drawing(plan)]
        if not rows:
            # Nothing was read back, so nothing has waited for the device yet.
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return StepResult()
        if draws:
            logits = logits[draws[0]]
        return StepResult(tuple(self._sampler.sample(logits, rows)))

    def save_blocks(self, ids: list[int], out: NDArray[np.uint8]) -> None:
        """Copy blocks to host memory: `out` is uint8 [len(ids), block_bytes]."""
        packed = self.ops.pack_blocks(self.kv, torch.tensor(ids, device=self.device))
        torch.from_numpy(out).copy_(packed)

    def load_blocks(self, ids: list[int], data: NDArray[np.uint8]) -> None:
        """The opposite of `save_blocks`."""
        packed = torch.from_numpy(data).to(self.device)
        self.ops.unpack_blocks(self.kv, torch.tensor(ids, device=self.device), packed)

    def warmup(self) -> None:
        """Compile every kernel a step may need. Overwrites blocks: call before serving."""
        from pd.engine.warmup import warmup_plans

        for plan in warmup_plans(
            self.num_blocks,
            self.block_size,
            min(self._max_num_batched_tokens, self.max_model_len),
            self.device.type,
        ):
            self.execute(plan)

    def _copy(self, copies: tuple[tuple[int, int], ...]) -> None:
        sources, targets = zip(*copies, strict=True)
        if set(sources).isdisjoint(targets):
            batches = [copies]
        else:
            # A block freed by one copy may be the target of a later one: order matters.
            batches = [(pair,) for pair in copies]
        for batch in batches:
            src, dst = torch.tensor(batch, device=self.device).unbind(1)
            self.ops.copy_blocks(self.kv, src.contiguous(), dst.contiguous())

    def _spare_bytes(self, utilization: float, max_tokens: int, max_rows: int) -> int:
        if self.device.type == "cpu":
            raise ConfigError("on a CPU the size of the KV cache must be given")
        max_tokens = min(max_tokens, self.max_model_len)
        return free_gpu_bytes(
            self.model, self.layout, self.device, utilization, max_tokens, max_rows
        )


def sample_row(seq: Sequence) -> SampleRow:
    """What the sampler must know to draw the next token of a sequence."""
    params = seq.params
    # Only penalties look at earlier output; a copy each step would cost its length.
    penalised = (
        params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    )
    return SampleRow(
        params=params,
        seed=seq.seed,
        position=len(seq.tokens) - seq.num_prompt,
        prompt=seq.request.prompt,
        output=seq.tokens[seq.num_prompt :] if penalised else (),
        eos_ids=() if params.ignore_eos else seq.request.eos_token_ids,
    )


def _drawing(plan: BatchPlan) -> Iterator[Sequence]:
    for chunk in plan.chunks:
        yield from chunk.sample
    yield from plan.decodes


def _max_model_len(spec: ModelSpec, wanted: int | None) -> int:
    if wanted is None:
        return spec.max_positions
    if not 0 < wanted <= spec.max_positions:
        raise ConfigError(
            f"max_model_len is {wanted}, but the model has positions for 1 to {spec.max_positions}"
        )
    return wanted
