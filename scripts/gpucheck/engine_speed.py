"""Stage: speed of the engine on the real model and on dummy weights shaped like Llama-3-8B.

Floors: prefill, FLOPs = 2 P n + 2 L d n^2 at the measured matrix rate (P weights used a token,
d = heads x head_dim, causal); decode, weight bytes + KV bytes of all contexts at the measured copy
rate.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpucheck.context import Context, Numbers, show
from gpucheck.generation import make_sequence
from pd.engine.engine import Engine
from pd.types import BatchPlan, PrefillChunk, Sequence
from pd_kernels.meta import AttentionMeta

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip
SMOLLM2_135M = LLAMA_3_8B | {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
TINY = SMOLLM2_135M | {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 300,
}  # fmt: skip


def engine_speed(context: Context) -> Numbers:
    """Prefill tokens/s and decode step times, each with its share of the floor."""
    rows: list[Numbers] = []
    with tempfile.TemporaryDirectory() as scratch:
        models: list[tuple[str, Path, str]] = []
        if context.model is not None and context.cuda:
            models.append((context.model.name, context.model, "auto"))
        else:
            config = SMOLLM2_135M if context.cuda else TINY
            name = "smollm2-135m dummy" if context.cuda else "tiny dummy"
            models.append((name, _config_dir(Path(scratch) / "small", config), "dummy"))
        if context.cuda:
            directory = _config_dir(Path(scratch) / "llama-3-8b", LLAMA_3_8B)
            models.append(("llama-3-8b dummy", directory, "dummy"))
        for name, directory, load_format in models:
            rows += _measure(context, name, directory, load_format)
            gc.collect()
            if context.cuda:
                torch.cuda.empty_cache()
    return {"ok": all(row.get("ok", True) for row in rows), "rows": rows}


def _config_dir(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _points(context: Context) -> tuple[list[int], list[tuple[int, int]]]:
    """Prompt lengths, and (batch, context) of decode steps."""
    if not context.cuda:
        return [64], [(1, 32), (4, 64)]
    if context.quick:
        return [512, 2048], [(1, 200), (32, 2048), (128, 2048)]
    batches = (1, 8, 32, 128, 256)
    return [512, 2048, 8192], [(batch, length) for length in (200, 2048) for batch in batches]


def _measure(context: Context, name: str, directory: Path, load_format: Any) -> list[Numbers]:
    prompts, decodes = _points(context)
    longest = max(*prompts, *(length + 1 for _, length in decodes))
    start = time.perf_counter()
    options: dict[str, Any] = {"num_blocks": 64} if not context.cuda else {}
    engine = Engine(
        directory, device=context.device.type, load_format=load_format,
        dtype="bfloat16" if context.cuda else "float32", max_model_len=longest,
        max_num_batched_tokens=max(prompts), gpu_memory_utilization=0.85, **options,
    )  # fmt: skip
    load_s = time.perf_counter() - start
    if context.cuda:
        for part in engine.kv.split(64):  # timings on zeros flatter
            part.normal_(std=0.5)
    start = time.perf_counter()
    engine.warmup()
    rows: list[Numbers] = [
        {"model": name, "load_s": load_s, "warmup_s": time.perf_counter() - start,
         "num_blocks": engine.num_blocks, "kv_bytes": engine.kv.nbytes}
    ]  # fmt: skip
    show(name, load_s=load_s, warmup_s=rows[0]["warmup_s"], KV_GB=engine.kv.nbytes / 1e9)
    rows += [_prefill(context, name, engine, num_tokens) for num_tokens in prompts]
    for batch, length in decodes:
        if batch * -(-(length + 1) // engine.block_size) > engine.num_blocks:
            show(f"{name} decode B={batch} ctx={length}", skipped="the KV arena is too small")
            continue
        rows.append(_decode(context, name, engine, batch, length))
    return rows


def _weights(engine: Engine) -> tuple[int, int]:
    """(weights that every token of a prompt multiplies, weights that a decode step reads)."""
    spec = engine.spec
    layer = spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size + 3 * spec.intermediate_size)
    body = spec.num_layers * layer
    return body, body + spec.vocab_size * spec.hidden_size


def _times(context: Context, run: Any, repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        context.synchronize()
        start = time.perf_counter()
        run()
        context.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _prefill(context: Context, name: str, engine: Engine, num_tokens: int) -> Numbers:
    prompt = torch.randint(0, engine.spec.vocab_size, (num_tokens,)).tolist()
    seq = make_sequence(prompt, 1)
    seq.blocks = list(range(engine.layout.num_blocks_for(num_tokens)))
    plan = BatchPlan(chunks=(PrefillChunk(seq, 0, num_tokens, (seq,)),))
    seconds = _times(context, lambda: engine.execute(plan), 10 if context.cuda else 2)
    body, _ = _weights(engine)
    spec = engine.spec
    flops = 2 * body * num_tokens + 2 * spec.num_layers * spec.q_size * num_tokens**2
    floor = flops / context.get_ceilings().gemm_flops_per_s
    row: Numbers = {
        "model": name, "phase": "prefill", "tokens": num_tokens, "s": seconds,
        "tokens_per_s": num_tokens / seconds, "tflops": flops / seconds / 1e12,
        "floor_s": floor, "of_floor": floor / seconds,
    }  # fmt: skip
    if context.cuda and num_tokens == 2048:
        row["kernels"] = _profile(lambda: engine.execute(plan))
    show(f"{name} prefill {num_tokens}", ms=seconds * 1e3, tokens_per_s=row["tokens_per_s"],
         of_gemm=row["of_floor"])  # fmt: skip
    return row


def _decode(context: Context, name: str, engine: Engine, batch: int, length: int) -> Numbers:
    """step_s: `Engine.execute`, host and all. forward_s: the model alone as a CUDA graph."""
    blocks = engine.layout.num_blocks_for(length + 1)
    order = torch.randperm(engine.num_blocks).tolist()
    sequences: list[Sequence] = []
    for index in range(batch):
        prompt = torch.randint(0, engine.spec.vocab_size, (length,)).tolist()
        seq = make_sequence(prompt, 8, str(index))
        seq.blocks = order[index * blocks : (index + 1) * blocks]
        seq.table_version += 1
        seq.num_computed = length - 1
        sequences.append(seq)
    plan = BatchPlan(decodes=tuple(sequences))
    step_s = _times(context, lambda: engine.execute(plan), 20 if context.cuda else 2)
    forward_s = _graph_forward_s(context, engine, sequences) if context.cuda else None
    _, read = _weights(engine)
    num_bytes = read * engine.precision.storage.itemsize + (
        batch * length * engine.layout.token_bytes
    )
    floor = num_bytes / context.get_ceilings().copy_bytes_per_s
    row: Numbers = {
        "model": name, "phase": "decode", "batch": batch, "context": length, "step_s": step_s,
        "tokens_per_s": batch / step_s, "forward_s": forward_s, "floor_s": floor,
        "of_floor": floor / step_s,
        "forward_of_floor": None if forward_s is None else floor / forward_s,
    }  # fmt: skip
    if context.cuda and (batch, length) == (32, 2048):
        row["kernels"] = _profile(lambda: engine.execute(plan))
    show(f"{name} decode B={batch} ctx={length}", step_ms=step_s * 1e3,
         forward_ms=None if forward_s is None else forward_s * 1e3, floor_ms=floor * 1e3,
         of_floor=row["of_floor"])  # fmt: skip
    return row


def _profile(run: Callable[[], object]) -> list[Numbers]:
    """Device time of each kernel in one call, longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    rows = [
        {"kernel": event.key[:80], "calls": event.count, "us": event.self_device_time_total}
        for event in events[:12]
    ]
    for row in rows[:6]:
        show(f"  {row['kernel'][:40]}", calls=row["calls"], us=row["us"])
    return rows


def _graph_forward_s(context: Context, engine: Engine, sequences: list[Sequence]) -> float:
    """Device seconds of one forward pass, without the host's launches and the sampler."""
    device, size = context.device, engine.block_size
    batch, length = len(sequences), len(sequences[0].tokens)
    last = [seq.blocks[(length - 1) // size] * size + (length - 1) % size for seq in sequences]
    meta = AttentionMeta.from_lists(
        [seq.blocks for seq in sequences], [1] * batch, [length] * batch, 0, device
    )
    token_ids = torch.tensor([seq.tokens[-1] for seq in sequences], device=device)
    positions = torch.full((batch,), length - 1, device=device)
    slots, rows = torch.tensor(last, device=device), torch.arange(batch, device=device)
    return context.median_s(
        lambda: engine.model.forward(token_ids, positions, engine.kv, slots, meta, rows)
    )
