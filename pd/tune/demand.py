"""What a workload asks for, as the few figures that an estimate needs."""

from __future__ import annotations

from dataclasses import dataclass

from pd.types import SLO
from pd.workload.arrival import Workload

_SAMPLE = 60


@dataclass(frozen=True)
class Demand:
    """`prompts` is a sample of (tokens of the prompt, those of them that were in an earlier
    prompt, tokens of the output); the rest are means, `context` that of a running sequence, and
    `distinct` the tokens of all prompts, those in several of them counted once."""

    prompts: tuple[tuple[int, int, int], ...]
    output: float
    context: float
    distinct: int
    slo: SLO

    @classmethod
    def of(cls, workload: Workload, slo: SLO) -> Demand:
        seen: set[int] = set()
        rows: list[tuple[int, int, int]] = []
        distinct = 0
        for each in workload:
            known = 0
            for block in each.prefix:
                if block not in seen:
                    break
                known += 1
            seen.update(each.prefix[known:])
            again = min(known * workload.block_tokens, each.num_prompt - 1)
            distinct += each.num_prompt - again
            rows.append((each.num_prompt, again, each.num_output))
        outputs = sum(output for _, _, output in rows)
        context = sum(output * (prompt + output / 2) for prompt, _, output in rows) / outputs
        # Evenly by prompt length, so that a small sample has the long ones, too.
        rows.sort()
        step = max(1.0, len(rows) / _SAMPLE)
        sample = [rows[int((i + 0.5) * step)] for i in range(min(_SAMPLE, len(rows)))]
        return cls(tuple(sample), outputs / len(rows), context, distinct, slo)
