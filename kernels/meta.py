"""AttentionMeta: where each row of a flat batch finds its KV.

Legend: T tokens of the flat batch, S sequences, P block_size (tokens per KV block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionMeta:
    """One step's batch as attention sees it: prefill chunks first, decode rows last.

    All tensors are int32 on the device of the batch. The python integers are known to the
    scheduler, so that launching a kernel never waits for the device.

    block_tables: [S, max_blocks]; row s lists the blocks of sequence s in order, padded with 0.
    query_starts: [S + 1]; rows query_starts[s] .. query_starts[s + 1] of q belong to sequence s.
    context_lens: [S]; KV length of sequence s, this step's tokens included. The queries of a
        sequence are its last tokens: row i sits at position context_len - query_len + i.
        A decode row of context length 0 is padding; its output is zero.
    num_prefill:  the first num_prefill sequences may have any number of query rows.
    num_decode:   the last num_decode sequences have exactly one each.
    max_query_len, max_context_len: upper bounds over the batch, in tokens.
    """

    block_tables: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    num_prefill: int
    num_decode: int
    max_query_len: int
    max_context_len: int

    @property
    def num_sequences(self) -> int:
        return self.num_prefill + self.num_decode

    @classmethod
    def from_lists(
        cls,
        block_tables: Sequence[Sequence[int]],
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        num_prefill: int,
        device: torch.device | str = "cpu",
    ) -> AttentionMeta:
        """Build from one block table, query length and context length a sequence.

        Raises ValueError where the lists disagree with each other.
        """
        num = len(query_lens)
        if len(block_tables) != num or len(context_lens) != num:
            raise ValueError(
                f"{num} query lengths, {len(context_lens)} context lengths and "
                f"{len(block_tables)} block tables: there must be as many of each"
            )
        if not 0 <= num_prefill <= num:
            raise ValueError(f"num_prefill is {num_prefill}, but there are {num} sequences")
        if any(n != 1 for n in query_lens[num_prefill:]):
            raise ValueError("a decode sequence has exactly one query row; put prefills first")
        for s in range(num_prefill):
            if query_lens[s] > context_lens[s]:
                raise ValueError(
                    f"sequence {s} has {query_lens[s]} query rows but a context of "
                    f"{context_lens[s]}; the context includes this step's tokens"
                )
        width = max((len(table) for table in block_tables), default=0)
        padded = [list(table) + [0] * (width - len(table)) for table in block_tables]
        starts = [0]
        for n in query_lens:
            starts.append(starts[-1] + n)
        return cls(
            block_tables=torch.tensor(padded, dtype=torch.int32, device=device).view(num, width),
            query_starts=torch.tensor(starts, dtype=torch.int32, device=device),
            context_lens=torch.tensor(list(context_lens), dtype=torch.int32, device=device),
            num_prefill=num_prefill,
            num_decode=num - num_prefill,
            max_query_len=max(query_lens, default=0),
            max_context_len=max(context_lens, default=0),
        )
