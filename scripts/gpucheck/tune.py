"""Stage: which attention tiles and split lengths are fastest here. Later stages use them."""

from __future__ import annotations

from dataclasses import asdict

import torch

from gpucheck.batches import paged_batch
from gpucheck.context import Context, Numbers, show
from gpucheck.speed import BLOCK_SIZE, SHAPES


def tune(context: Context) -> Numbers:
    """Times of every candidate; the fastest is kept for this process."""
    if not context.cuda:
        return {"ok": True, "skipped": "tiles are tuned on a GPU only"}
    from pd_kernels.triton_tune import tune_attention

    results = []
    shapes = list(SHAPES.items())[: 1 if context.quick else None]
    for model, (heads, kv_heads, head_dim) in shapes:
        for tuning in tune_attention(
            context.device,
            context.fast_dtype,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=BLOCK_SIZE,
        ):
            times = dict(tuning.seconds)
            show(
                f"{model} {tuning.key.phase}",
                best=tuple(asdict(tuning.best).values()),
                us=times[tuning.best] * 1e6,
                default=tuple(asdict(tuning.default).values()),
                default_us=times.get(tuning.default, float("nan")) * 1e6,
            )
            results.append(
                {
                    "model": model,
                    "phase": tuning.key.phase,
                    "dtype": str(tuning.key.dtype).removeprefix("torch."),
                    "head_dim": tuning.key.head_dim,
                    "group": tuning.key.group,
                    "default": asdict(tuning.default),
                    "seconds": [{**asdict(tile), "s": s} for tile, s in tuning.seconds],
                    "refused": [{**asdict(tile), "why": why} for tile, why in tuning.refused],
                }
            )
        torch.cuda.empty_cache()
    return {"ok": True, "tiles": results, "splits": _splits(context)}


def use_tuned(context: Context, stage: Numbers) -> None:
    """Use in this process the tiles that an earlier process's tune stage found."""
    tiles = stage.get("tiles", [])
    if not context.cuda or not tiles:
        return
    from pd_kernels.triton_tiles import Tile, TileKey, set_tuned_tile

    for found in tiles:
        key = TileKey(
            found["phase"], getattr(torch, found["dtype"]), found["head_dim"], found["group"]
        )
        best = {name: size for name, size in found["seconds"][0].items() if name != "s"}
        set_tuned_tile(context.device, key, Tile(**best))


def _splits(context: Context) -> list[Numbers]:
    """Decode attention for each split length, beside the one chosen by the kernel's own rule."""
    from pd_kernels.triton_attention_decode import decode_attention, split_length

    rows = []
    heads, kv_heads, head_dim = SHAPES["llama-3-8b"]
    multiprocessors = torch.cuda.get_device_properties(context.device).multi_processor_count
    for batch, length in ((1, 2048), (1, 32768), (8, 2048), (32, 2048), (128, 2048)):
        q, kv, meta = paged_batch(
            [1] * batch,
            [length] * batch,
            0,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=BLOCK_SIZE,
            dtype=context.fast_dtype,
            device=context.device,
        )
        out = torch.empty_like(q)
        times = {
            split: context.median_s(
                lambda split=split, q=q, kv=kv, meta=meta, out=out: decode_attention(
                    q, kv, 0, meta, 0.1, None, out, split=split
                )
            )
            for split in (128, 256, 512, 1024, 2048, 4096)
            if split <= length
        }
        chosen = split_length(batch, kv_heads, length, multiprocessors)
        best = min(times, key=times.__getitem__)
        show(f"split B={batch} ctx={length}", chosen=chosen, best=best, best_us=times[best] * 1e6,
             all_us={split: round(s * 1e6, 1) for split, s in times.items()})  # fmt: skip
        rows.append({"batch": batch, "context": length, "chosen": chosen, "seconds": times})
    return rows
