"""Stage: every kernel against the reference, on fresh random inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from gpucheck.batches import paged_batch, poison
from gpucheck.context import Context, Numbers, show
from pd_kernels.reference import ReferenceOps

# ||out - exact|| / ||exact||, exact being the reference on inputs widened to float64.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

# (query heads, kv heads, head_dim): Llama-3-8B, SmolLM2-135M, Qwen2-7B, Qwen3-0.6B, no groups,
# sizes that are no power of two, and a head too large for one matrix tile.
HEADS = [
    (32, 8, 128),
    (9, 3, 64),
    (28, 4, 128),
    (16, 8, 128),
    (12, 12, 80),
    (8, 1, 96),
    (4, 2, 256),
]
REFERENCE = ReferenceOps()

Pair = tuple[torch.Tensor, torch.Tensor]


def kernels(context: Context) -> Numbers:
    """Errors of every kernel for many shapes; fails if any is over its dtype's tolerance."""
    cases: list[Numbers] = []
    for dtype in context.dtypes:
        for name, run in _cases(context, dtype):
            try:
                error = max(_error(actual, exact) for actual, exact in run())
            except Exception as failure:  # one broken shape must not hide the others
                cases.append(
                    {"case": name, "dtype": str(dtype), "ok": False, "error": repr(failure)}
                )
                show(f"{name} {dtype}", FAILED=repr(failure)[:200])
                continue
            ok = error <= TOLERANCE[dtype]
            cases.append({"case": name, "dtype": str(dtype), "ok": ok, "rel_error": error})
            if not ok:
                show(f"{name} {dtype}", FAILED_rel_error=error)
    worst: Numbers = {}
    for case in cases:
        key = f"{case['case'].split()[0]} {case['dtype'].removeprefix('torch.')}"
        worst[key] = max(worst.get(key, 0.0), case.get("rel_error", float("inf")))
    for key, error in worst.items():
        show(key, worst_rel_error=error)
    failed = sum(not case["ok"] for case in cases)
    show(f"{len(cases)} cases", failed=failed)
    return {"ok": failed == 0, "cases": cases, "worst": worst}


def _error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    wide, exact = actual.double(), exact.double()
    if not bool(torch.isfinite(wide).all()):
        return float("inf")
    norm = float(exact.norm())
    return float((wide - exact).norm()) / norm if norm else float(wide.norm())


def _cases(context: Context, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], list[Pair]]]]:
    """Every shape makes compiled variants of its own, so each is worth its second."""
    for shape in [(1, 576), (7, 2048), (300, 4096), (33, 5000), (4000, 128), (3, 16384)]:
        yield f"rms_norm {shape}", lambda shape=shape: _norm(context, dtype, *shape)
    for shape in [(1, 3072), (300, 2 * 1536), (129, 28672), (5, 2 * 777)]:
        yield f"silu_mul {shape}", lambda shape=shape: _silu(context, dtype, *shape)
    heads_tried = HEADS[:3] if context.quick or not context.cuda else HEADS
    block_sizes = (16,) if context.quick or not context.cuda else (1, 6, 32, 64)
    for heads in heads_tried:
        for rotated in (heads[2], heads[2] // 2) if heads is HEADS[0] else (heads[2],):
            yield (
                f"rotary {heads} R={rotated}",
                lambda heads=heads, rotated=rotated: _rotary(context, dtype, *heads, rotated),
            )
        for block_size in (16, *block_sizes) if heads is HEADS[1] else (16,):
            yield (
                f"cache {heads} P={block_size}",
                lambda heads=heads, size=block_size: _cache(context, dtype, *heads, size),
            )
    variants = [(heads, 16, None) for heads in heads_tried]
    variants += [(HEADS[1], size, None) for size in block_sizes if size != 16]
    variants += [(heads, 16, 100) for heads in heads_tried[:3]]
    for heads, size, window in variants:
        for index, batch in enumerate(_batches(300 if not context.cuda else 3000)):
            yield (
                f"attention {heads} P={size} W={window} batch {index}",
                lambda heads=heads, size=size, window=window, batch=batch: _attention(
                    context, dtype, heads, size, window, batch
                ),
            )


def _batches(long: int) -> list[tuple[list[int], list[int], int]]:
    """(query lens, contexts, number of prefills): one token; chunks; decodes; both."""
    return [
        ([1], [1], 1),
        ([130, 17, 1], [130, long, 40], 3),
        ([long], [long], 1),
        ([1] * 6, [1, 16, 17, 0, 255, long], 0),
        ([1] * 2, [long, 100], 0),
        ([77, 5, 1, 1, 1], [77, long, long - 1, 3, 200], 2),
    ]


def _randn(context: Context, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=context.device).to(dtype)


def _norm(context: Context, dtype: torch.dtype, rows: int, length: int) -> list[Pair]:
    x, residual = (_randn(context, dtype, rows, length) for _ in range(2))
    weight = _randn(context, dtype, length)
    exact = REFERENCE.rms_norm(x.double(), weight.double(), 1e-5)
    poison(rows, length, dtype=dtype, device=context.device)
    plain = context.ops.rms_norm(x, weight, 1e-5)
    total = (x.float() + residual.float()).to(dtype)
    normed, new_residual = context.ops.add_rms_norm(x, residual.clone(), weight, 1e-5)
    exact_normed = REFERENCE.rms_norm(total.double(), weight.double(), 1e-5)
    return [(plain, exact), (normed, exact_normed), (new_residual, total)]


def _silu(context: Context, dtype: torch.dtype, rows: int, width: int) -> list[Pair]:
    gate_up = _randn(context, dtype, rows, width) * 3
    exact = REFERENCE.silu_mul(gate_up.double())
    poison(rows, width // 2, dtype=dtype, device=context.device)
    return [(context.ops.silu_mul(gate_up), exact)]


def _rotary(
    context: Context, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, rotated: int
) -> list[Pair]:
    fused = _randn(context, dtype, 50, heads + 2 * kv_heads, head_dim)
    exact = fused.double()
    angles = torch.randn(4096, rotated // 2, device=context.device)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.randint(0, 4096, (50,), device=context.device)
    context.ops.rotary(fused[:, :heads], fused[:, heads : heads + kv_heads], positions, cos_sin)
    REFERENCE.rotary(
        exact[:, :heads], exact[:, heads : heads + kv_heads], positions, cos_sin.double()
    )
    return [(fused, exact)]


def _cache(
    context: Context, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, block_size: int
) -> list[Pair]:
    """Copies are exact: any difference is reported as an infinite error."""
    device, num_blocks = context.device, 40
    kv = _randn(context, dtype, num_blocks, 2, 2, kv_heads, block_size, head_dim)
    expected = kv.clone()
    fused = _randn(context, dtype, 33, heads + 2 * kv_heads, head_dim)
    k, v = fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :]
    slots = torch.randperm(num_blocks * block_size, device=device)[:33]
    slots[3] = -1
    context.ops.write_kv(k, v, kv, 1, slots)
    REFERENCE.write_kv(k, v, expected, 1, slots)
    same = torch.equal(kv, expected)
    ids = torch.randperm(num_blocks, device=device)
    packed = context.ops.pack_blocks(kv, ids[:7])
    same &= torch.equal(packed, REFERENCE.pack_blocks(kv, ids[:7]))
    context.ops.unpack_blocks(kv, ids[7:14], packed)
    context.ops.copy_blocks(kv, ids[:5], ids[14:19])
    expected[ids[7:14]], expected[ids[14:19]] = expected[ids[:7]], expected[ids[:5]]
    same &= torch.equal(kv, expected)
    return [(torch.tensor(0.0 if same else float("inf")), torch.tensor(0.0))]


def _attention(
    context: Context,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    block_size: int,
    window: int | None,
    batch: tuple[list[int], list[int], int],
) -> list[Pair]:
    query_lens, contexts, num_prefill = batch
    q, kv, meta = paged_batch(
        query_lens,
        contexts,
        num_prefill,
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        block_size=block_size,
        dtype=dtype,
        device=context.device,
        layers=2,
    )
    scale = heads[2] ** -0.5
    exact = REFERENCE.attention(q.double(), kv.double(), 1, meta, scale, window)
    poison(*q.shape, dtype=dtype, device=context.device)
    return [(context.ops.attention(q, kv, 1, meta, scale, window), exact)]
