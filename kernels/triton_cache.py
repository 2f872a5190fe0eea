"""Movement of KV: into the arena, between its blocks, and in and out for a transfer.

Legend: T tokens, B blocks, L layers, K kv heads, P block_size, D head_dim; arena kv is
[B, L, 2, K, P, D] (2 = k, v). A word is the widest integer that divides a block's bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pd_kernels.triton_common import require_unit_stride

_WORDS_PER_PROGRAM = 2048
_WORD_DTYPES = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))


@triton.jit(do_not_specialize=["layer"], do_not_specialize_on_alignment=["slots_ptr"])
def _write_kv_kernel(
    k_ptr,
    v_ptr,
    kv_ptr,
    slots_ptr,
    layer,
    STRIDE_K: tl.constexpr,
    STRIDE_K_HEAD: tl.constexpr,
    STRIDE_V: tl.constexpr,
    STRIDE_V_HEAD: tl.constexpr,
    STRIDE_BLOCK: tl.constexpr,
    STRIDE_LAYER: tl.constexpr,
    STRIDE_VALUE: tl.constexpr,
    STRIDE_HEAD: tl.constexpr,
    STRIDE_TOKEN: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    heads = tl.arange(0, K_PAD)[:, None]
    dims = tl.arange(0, D_PAD)[None, :]
    inside = (heads < K) & (dims < D)
    k = tl.load(k_ptr + token * STRIDE_K + heads * STRIDE_K_HEAD + dims, mask=inside, other=0.0)
    v = tl.load(v_ptr + token * STRIDE_V + heads * STRIDE_V_HEAD + dims, mask=inside, other=0.0)
    base = kv_ptr + (slot // P) * STRIDE_BLOCK + layer.to(tl.int64) * STRIDE_LAYER
    target = base + (slot % P) * STRIDE_TOKEN + heads * STRIDE_HEAD + dims
    tl.store(target, k.to(kv_ptr.dtype.element_ty), mask=inside)
    tl.store(target + STRIDE_VALUE, v.to(kv_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["src_ids_ptr", "dst_ids_ptr"])
def _copy_blocks_kernel(
    src_ptr,
    dst_ptr,
    src_ids_ptr,
    dst_ids_ptr,
    SRC_STRIDE: tl.constexpr,
    DST_STRIDE: tl.constexpr,
    NUM_WORDS: tl.constexpr,
    SRC_LISTED: tl.constexpr,
    DST_LISTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy NUM_WORDS words of block src to block dst; an unlisted side is in order 0, 1, 2..."""
    index = tl.program_id(0).to(tl.int64)
    src = tl.load(src_ids_ptr + index) if SRC_LISTED else index
    dst = tl.load(dst_ids_ptr + index) if DST_LISTED else index
    words = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = words < NUM_WORDS
    value = tl.load(src_ptr + src * SRC_STRIDE + words, mask=inside)
    tl.store(dst_ptr + dst * DST_STRIDE + words, value, mask=inside)


def _as_words(kv: torch.Tensor) -> torch.Tensor:
    """The arena as [B, words a block]; raises ValueError unless each block is contiguous."""
    if kv.shape[0] and not kv[0].is_contiguous():
        raise ValueError("a KV block must be contiguous (all layers, heads and tokens in order)")
    num_blocks, block_elements = kv.shape[0], kv[0].numel() if kv.shape[0] else 0
    flat = kv.as_strided((num_blocks, block_elements), (kv.stride(0), 1))
    block_bytes, stride_bytes = (n * kv.element_size() for n in (block_elements, kv.stride(0)))
    for size, dtype in _WORD_DTYPES:
        if block_bytes % size == 0 and stride_bytes % size == 0 and kv.data_ptr() % size == 0:
            return flat.view(dtype)
    raise AssertionError("a byte divides every size")


def _copy(
    src: torch.Tensor,
    dst: torch.Tensor,
    src_ids: torch.Tensor | None,
    dst_ids: torch.Tensor | None,
    count: int,
) -> None:
    num_words = src.shape[1]
    if count == 0 or num_words == 0:
        return
    block = min(_WORDS_PER_PROGRAM, triton.next_power_of_2(num_words))
    _copy_blocks_kernel[(count, triton.cdiv(num_words, block))](
        src,
        dst,
        src if src_ids is None else src_ids,
        dst if dst_ids is None else dst_ids,
        SRC_STRIDE=src.stride(0),
        DST_STRIDE=dst.stride(0),
        NUM_WORDS=num_words,
        SRC_LISTED=src_ids is not None,
        DST_LISTED=dst_ids is not None,
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )


def write_kv(
    k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor
) -> None:
    """Store k, v [T, K, D] at slots [T] int64 of a layer; negative slots are skipped.

    Token and head strides of k and v are free (slices of a fused qkv).
    """
    for name, x in (("k", k), ("v", v), ("kv", kv)):
        require_unit_stride(name, x)
    num_tokens, num_kv_heads, head_dim = k.shape
    if num_tokens == 0:
        return
    _write_kv_kernel[(num_tokens,)](
        k,
        v,
        kv,
        slots,
        layer,
        STRIDE_K=k.stride(0),
        STRIDE_K_HEAD=k.stride(1),
        STRIDE_V=v.stride(0),
        STRIDE_V_HEAD=v.stride(1),
        STRIDE_BLOCK=kv.stride(0),
        STRIDE_LAYER=kv.stride(1),
        STRIDE_VALUE=kv.stride(2),
        STRIDE_HEAD=kv.stride(3),
        STRIDE_TOKEN=kv.stride(4),
        K=num_kv_heads,
        K_PAD=triton.next_power_of_2(num_kv_heads),
        P=kv.shape[4],
        D=head_dim,
        D_PAD=triton.next_power_of_2(head_dim),
        num_warps=4 if num_kv_heads * head_dim >= 512 else 2,
    )


def copy_blocks(kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """kv[dst[i]] = kv[src[i]]; src, dst [n] int64, dst distinct and disjoint from src."""
    words = _as_words(kv)
    _copy(words, words, src, dst, src.shape[0])


def pack_blocks(kv: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Bytes of blocks ids [n] int64 in order: uint8 [n, block_bytes]."""
    words = _as_words(kv)
    packed = torch.empty((ids.shape[0], words.shape[1]), dtype=words.dtype, device=kv.device)
    _copy(words, packed, ids, None, ids.shape[0])
    return packed.view(torch.uint8)


def unpack_blocks(kv: torch.Tensor, ids: torch.Tensor, packed: torch.Tensor) -> None:
    """Write packed uint8 [n, block_bytes] into blocks ids [n] int64 (distinct)."""
    words = _as_words(kv)
    block_bytes = words.shape[1] * words.element_size()
    if packed.shape != (ids.shape[0], block_bytes):
        raise ValueError(
            f"packed is {tuple(packed.shape)}, but {ids.shape[0]} blocks of {block_bytes} bytes "
            f"need ({ids.shape[0]}, {block_bytes})"
        )
    packed = packed.contiguous()
    if packed.data_ptr() % words.element_size():
        packed = packed.clone()
    _copy(packed.view(words.dtype), words, None, ids, ids.shape[0])
