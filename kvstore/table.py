"""Block tables: how a sequence gets blocks from a pool, shares them and gives them back."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from kvstore.blocks import BlockPool
from pd.types import Sequence


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
    return -(-num_tokens // block_size)


def acquire(
    pool: BlockPool, hashes: Seq[bytes], num_tokens: int, *, spare: int = 0, compute: bool
) -> tuple[list[int], int] | None:
    """Blocks for a prompt of `num_tokens`: its cached prefix, then new ones.

    Returns (block table, how many blocks of it were cached), every block held once; or
    None, with nothing changed, when the pool cannot give them and keep `spare` more. A node
    that will `compute` the prompt never takes all of it from the cache: its last token must
    run, for its logits.
    """
    limit = (num_tokens - 1) // pool.block_size if compute else len(hashes)
    cached = pool.match(hashes[:limit])
    missing = num_blocks(num_tokens, pool.block_size) - len(cached)
    if not pool.can_allocate(missing + spare):
        pool.release(cached)
        return None
    return cached + pool.allocate(missing), len(cached)


def share(pool: BlockPool, table: list[int], seqs: Seq[Sequence]) -> None:
    """Give one prompt's table to the sequences that continue from it, or back to the pool.

    Each holds every block; the first to write into the last one while others still do
    copies it (copy-on-write, by the decode scheduler).
    """
    for i, seq in enumerate(seqs):
        if i:
            pool.hold(table)
        seq.blocks = list(table)
        seq.table_version += 1
    if not seqs:
        pool.release(table)
