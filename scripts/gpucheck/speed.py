"""Stage: speed of every kernel against the machine's ceilings and torch's own attention.

Floors: memory-bound kernels move each input and output byte once at the measured copy rate;
prefill attention does 4 * head_dim FLOPs for every visible (query, key) pair and query head at the
measured matrix rate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from gpucheck.batches import paged_batch
from gpucheck.context import Context, Numbers, show

BLOCK_SIZE = 16
SHAPES = {"llama-3-8b": (32, 8, 128), "smollm2-135m": (9, 3, 64)}


def speed(context: Context) -> Numbers:
    """Seconds, GB/s or TFLOP/s of every kernel, and the share of the measured ceiling."""
    ceilings = context.get_ceilings()
    print(
        f"  ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s, "
        f"matrix product {ceilings.gemm_flops_per_s / 1e12:.2f} TFLOP/s",
        flush=True,
    )
    rows = _elementwise(context) + _movement(context) + _decode(context) + _prefill(context)
    return {"ok": True, "rows": rows}


def _memory_row(context: Context, name: str, num_bytes: float, call: Callable[[], object],
                **more: object) -> Numbers:  # fmt: skip
    seconds = context.median_s(call)
    rate = num_bytes / seconds
    share = rate / context.get_ceilings().copy_bytes_per_s
    row: Numbers = {"kernel": name, "s": seconds, "gb_per_s": rate / 1e9, "of_copy": share, **more}
    show(name, us=seconds * 1e6, GBps=rate / 1e9, of_copy=share, **more)
    return row


def _elementwise(context: Context) -> list[Numbers]:
    ops, device, dtype = context.ops, context.device, context.fast_dtype
    hidden, inner, heads, kv_heads, head_dim = (4096, 14336, 32, 8, 128)
    if not context.cuda:
        hidden, inner, heads, kv_heads, head_dim = (576, 1536, 9, 3, 64)
    rows = []
    for tokens in (1, 128, 8192) if context.cuda else (1, 64):
        x, residual = (torch.randn(tokens, hidden, device=device).to(dtype) for _ in range(2))
        weight = torch.randn(hidden, device=device).to(dtype)
        gate_up = torch.randn(tokens, 2 * inner, device=device).to(dtype)
        fused = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=device).to(dtype)
        q, k = fused[:, :heads], fused[:, heads : heads + kv_heads]
        positions = torch.randint(0, 8192, (tokens,), device=device)
        cos_sin = torch.randn(8192, head_dim, device=device)
        size = dtype.itemsize
        rows += [
            _memory_row(context, f"rms_norm T={tokens}", 2 * x.nbytes,
                        lambda x=x, w=weight: ops.rms_norm(x, w, 1e-5)),
            _memory_row(context, f"add_rms_norm T={tokens}", 4 * x.nbytes,
                        lambda x=x, r=residual, w=weight: ops.add_rms_norm(x, r, w, 1e-5)),
            _memory_row(context, f"silu_mul T={tokens}", 1.5 * gate_up.nbytes,
                        lambda g=gate_up: ops.silu_mul(g)),
            _memory_row(context, f"rotary T={tokens}",
                        2 * tokens * (heads + kv_heads) * head_dim * size,
                        lambda q=q, k=k, p=positions, c=cos_sin: ops.rotary(q, k, p, c)),
        ]  # fmt: skip
    return rows


def _movement(context: Context) -> list[Numbers]:
    ops, device, dtype = context.ops, context.device, context.fast_dtype
    layers, kv_heads, head_dim = (32, 8, 128) if context.cuda else (4, 3, 64)
    num_blocks = 512 if context.cuda else 40
    kv = torch.empty(
        (num_blocks, layers, 2, kv_heads, BLOCK_SIZE, head_dim), dtype=dtype, device=device
    ).normal_()
    block_bytes = kv[0].nbytes
    rows = []
    for tokens in (1, 128, 8192) if context.cuda else (1, 128):
        fused = torch.randn(tokens, 3 * kv_heads, head_dim, device=device).to(dtype)
        k, v = fused[:, kv_heads : 2 * kv_heads], fused[:, 2 * kv_heads :]
        slots = torch.randperm(num_blocks * BLOCK_SIZE, device=device)[:tokens]
        num_bytes = 4 * tokens * kv_heads * head_dim * dtype.itemsize
        rows.append(
            _memory_row(
                context,
                f"write_kv T={tokens}",
                num_bytes,
                lambda k=k, v=v, s=slots: ops.write_kv(k, v, kv, layers // 2, s),
            )
        )
    for count in (16, num_blocks // 2):
        ids = torch.randperm(num_blocks, device=device)
        first, second = ids[:count].contiguous(), ids[-count:].contiguous()
        packed = ops.pack_blocks(kv, first)
        moved = 2 * count * block_bytes
        rows += [
            _memory_row(context, f"pack_blocks n={count}", moved,
                        lambda i=first: ops.pack_blocks(kv, i)),
            _memory_row(context, f"unpack_blocks n={count}", moved,
                        lambda i=first, p=packed: ops.unpack_blocks(kv, i, p)),
            _memory_row(context, f"copy_blocks n={count}", moved,
                        lambda a=first, b=second: ops.copy_blocks(kv, a, b)),
        ]  # fmt: skip
    return rows


def _decode(context: Context) -> list[Numbers]:
    """Decode attention: bytes are the KV read, the queries and the output."""
    rows = []
    points = [(1, 200), (1, 2048), (8, 2048), (32, 2048), (128, 200), (128, 2048)]
    if not context.quick:
        points += [(1, 32768), (8, 200), (32, 200), (32, 8192), (256, 200), (256, 2048)]
    if not context.cuda:
        points = [(1, 200), (8, 200)]
    for model, (heads, kv_heads, head_dim) in SHAPES.items():
        for batch, length in points:
            kv_bytes = batch * length * 2 * kv_heads * head_dim * context.fast_dtype.itemsize
            if 3 * kv_bytes > context.free_bytes():
                show(f"decode {model} B={batch} ctx={length}", skipped="not enough memory")
                continue
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
            scale = head_dim**-0.5
            dense = [
                torch.randn(batch, kv_heads, length, head_dim, device=context.device).to(q.dtype)
                for _ in range(2)
            ]
            torch_s = _sdpa_seconds(context, q.view(batch, heads, 1, head_dim), *dense, False)
            del dense
            rows.append(
                _memory_row(
                    context,
                    f"decode attention {model} B={batch} ctx={length}",
                    kv_bytes + 2 * q.nbytes,
                    lambda q=q, kv=kv, meta=meta, scale=scale: context.ops.attention(
                        q, kv, 0, meta, scale
                    ),
                    torch_sdpa_s=torch_s,
                )
            )
    return rows


def _prefill(context: Context) -> list[Numbers]:
    """Prefill attention of whole prompts, and of a chunk over a cached prefix."""
    rows = []
    points = [(1, 512, 0), (1, 2048, 0), (1, 8192, 0), (4, 2048, 0), (1, 512, 8192)]
    if not context.cuda:
        points = [(1, 128, 0), (1, 64, 128)]
    for model, (heads, kv_heads, head_dim) in SHAPES.items():
        for batch, length, prefix in points:
            q, kv, meta = paged_batch(
                [length] * batch,
                [prefix + length] * batch,
                batch,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                block_size=BLOCK_SIZE,
                dtype=context.fast_dtype,
                device=context.device,
            )
            pairs = batch * (length * prefix + length * (length + 1) // 2)
            flops = 4 * head_dim * heads * pairs
            seconds = context.median_s(
                lambda q=q, kv=kv, meta=meta, d=head_dim: context.ops.attention(
                    q, kv, 0, meta, d**-0.5
                )
            )
            torch_s = None
            if not prefix:
                dense = [
                    torch.randn(batch, n, length, head_dim, device=context.device).to(q.dtype)
                    for n in (heads, kv_heads, kv_heads)
                ]
                torch_s = _sdpa_seconds(context, *dense, True)
            rate = flops / seconds
            row: Numbers = {
                "kernel": f"prefill attention {model} B={batch} T={length} prefix={prefix}",
                "s": seconds,
                "tflops": rate / 1e12,
                "of_gemm": rate / context.get_ceilings().gemm_flops_per_s,
                "torch_sdpa_s": torch_s,
            }
            show(row["kernel"], us=seconds * 1e6, TFLOPs=row["tflops"], of_gemm=row["of_gemm"],
                 torch_sdpa_us=None if torch_s is None else torch_s * 1e6)  # fmt: skip
            rows.append(row)
    return rows


def _sdpa_seconds(
    context: Context, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> float | None:
    """torch's own attention on contiguous, unpaged KV; None where it cannot run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return context.median_s(
                lambda: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            )
    except RuntimeError as error:
        show("torch SDPA", failed=str(error).splitlines()[0][:120])
        return None
