"""Accounting of a node's KV blocks: which are free, held or cached. No memory in sight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pd.errors import NoFreeBlocksError

if TYPE_CHECKING:
    from kvstore.blocklog import BlockLog


class BlockPool:
    """Blocks 0 .. num_blocks - 1, each with a count of its holders.

    A block can have several holders at once (the sequences that share it, a transfer that
    reads or writes it) and is reused only when the last of them has let go. A block whose
    content was registered under a prefix hash stays findable after that, until it is the
    least recently used one and room is needed.

    Every operation is O(1) per block. Mistakes of the caller raise ValueError and change
    nothing. What becomes findable, and what no longer is, goes to the `log`.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: bool = True,
        log: BlockLog | None = None,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"a pool needs at least one block of one token, not {num_blocks} of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.log = log
        self._holds = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # A stack: a block freed just now is still warm and its memory already touched.
        self._free = list(range(num_blocks - 1, -1, -1))
        # Cached blocks without a holder, the first to be evicted in front.
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give: without content, or cached and without a holder."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Blocks findable by hash, held or not."""
        return len(self._block_of)

    def holds(self, block: int) -> int:
        return self._holds[block]

    def is_shared(self, block: int) -> bool:
        """Whether writing into this block would change it for another holder."""
        return self._holds[block] > 1

    # ------------------------------------------------------------------ taking and letting go
    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= self.num_free

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks of undefined content, each held once.

        Takes blocks without content first, then evicts cached ones, least recently used
        first. NoFreeBlocksError, and no change, when there are not enough.
        """
        if num_blocks < 0:
            raise ValueError(f"cannot allocate {num_blocks} blocks")
        if num_blocks > self.num_free:
            raise NoFreeBlocksError(
                f"{num_blocks} blocks wanted, {self.num_free} of {self.num_blocks} free"
            )
        free = self._free
        kept = max(0, len(free) - num_blocks)
        blocks = free[kept:]
        blocks.reverse()
        del free[kept:]
        if len(blocks) < num_blocks:
            blocks += self._evict(num_blocks - len(blocks))
        holds = self._holds
        for block in blocks:
            holds[block] = 1
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for blocks that somebody already holds."""
        for block in blocks:
            if not (0 <= block < self.num_blocks and self._holds[block]):
                raise ValueError(f"block {block} is not held, so it cannot be shared")
        for block in blocks:
            self._holds[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each. Pass a sequence's blocks in order: of those that become
        evictable the last goes first, since a prefix is worth more than what follows it."""
        holds, hash_of, num_blocks = self._holds, self._hash_of, self.num_blocks
        let_go: list[int] = []
        for done, block in enumerate(blocks):
            if not (0 <= block < num_blocks and holds[block]):
                for undo in blocks[:done]:
                    holds[undo] += 1
                raise ValueError(f"block {block} was released more often than held")
            holds[block] = left = holds[block] - 1
            if not left:
                let_go.append(block)
        for block in reversed(let_go):
            if hash_of[block] is None:
                self._free.append(block)
            else:
                self._evictable[block] = None

    # ------------------------------------------------------------------ the prefix cache
    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest cached prefix of `hashes`, each held once more."""
        blocks: list[int] = []
        for key in hashes:
            block = self._block_of.get(key)
            if block is None:
                break
            if self._holds[block] == 0:
                del self._evictable[block]
            self._holds[block] += 1
            blocks.append(block)
        return blocks

    def peek(self, hashes: Iterable[bytes]) -> int:
        """How many blocks `match` would find; holds nothing and leaves the order of use."""
        count = 0
        for key in hashes:
            if key not in self._block_of:
                break
            count += 1
        return count

    def register(self, block: int, key: bytes) -> None:
        """Make a held block findable: its content is complete and no longer changes.

        If another block has this key already, that one stays findable and this one stays
        without: its content is freed with its last holder.
        """
        self.register_all((block,), (key,))

    def register_all(self, blocks: Sequence[int], keys: Sequence[bytes]) -> None:
        """`register` for each block and its key, where there are as many of both; a mistake ends
        it at that block."""
        holds, hash_of, block_of = self._holds, self._hash_of, self._block_of
        num_blocks, new = self.num_blocks, []
        try:
            for block, key in zip(blocks, keys):
                if not (0 <= block < num_blocks and holds[block]):
                    raise ValueError(f"block {block} is not held, so it cannot be registered")
                if key in block_of or not self.prefix_cache:
                    continue
                if hash_of[block] is not None:
                    raise ValueError(f"block {block} is already registered under another hash")
                hash_of[block] = key
                block_of[key] = block
                new.append(key)
        finally:
            if new and self.log is not None:
                self.log.note(new, "node", stored=True)

    def cached_keys(self) -> list[bytes]:
        """The hashes of everything findable."""
        return list(self._block_of)

    def clear_cache(self) -> None:
        """Forget every hash. Held blocks stay held; the others have no content any more."""
        self._free.extend(reversed(self._evictable))
        self._evictable.clear()
        for key, block in self._block_of.items():
            self._hash_of[block] = None
            if self.log is not None:
                self.log.removed(key, "node")
        self._block_of.clear()

    def _evict(self, num_blocks: int) -> list[int]:
        """The least recently used ones, without their content; so many there must be."""
        evictable, hash_of, block_of = self._evictable, self._hash_of, self._block_of
        blocks, gone = [], []
        for _ in range(num_blocks):
            block, _ = evictable.popitem(last=False)
            key = hash_of[block]
            assert key is not None
            del block_of[key]
            hash_of[block] = None
            blocks.append(block)
            gone.append(key)
        if self.log is not None:
            self.log.note(gone, "node", stored=False)
        return blocks

    def check(self) -> None:
        """Assert every invariant, in O(num_blocks). For tests and post-mortems."""
        free, evictable = set(self._free), set(self._evictable)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & evictable, "a block is both free and cached"
        for block in range(self.num_blocks):
            key = self._hash_of[block]
            assert self._holds[block] >= 0, f"block {block} has {self._holds[block]} holds"
            if self._holds[block]:
                assert block not in free and block not in evictable, f"held {block} is free"
            elif key is None:
                assert block in free, f"block {block} leaked"
            else:
                assert block in evictable, f"cached block {block} leaked"
            if key is not None:
                assert self._block_of.get(key) == block, f"block {block} cannot be found"
        hashed = sum(key is not None for key in self._hash_of)
        assert hashed == len(self._block_of), "a hash points to a block without it"
