"""Everything that could be tried: layouts of nodes, and for each what its options may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pd.tune.candidate import Candidate, Family, Group
from pd.tune.fleet import Fleet, NodeKind
from pd.types import SLO

CHUNKS = (512, 1024, 2048, 4096, 8192, 16384)
BLOCKS = (16, 32, 64, 128)
_FEW_BLOCKS = 256
_MOST_SPLITS = 12  # of one number of nodes between two roles

# Single changes of a good candidate. What the user has fixed is left out.
_MOVES: Mapping[str, tuple[Any, ...]] = {
    "max_num_batched_tokens": CHUNKS,
    "admission": ("predicted", "queue"),
    "disaggregate": ("auto", "always", "never"),
    "prefill_order": ("edf", "sjf", "fcfs"),
    "routing": ("cache_aware", "least_loaded", "affinity", "round_robin"),
    "block_size": BLOCKS,
    "max_num_seqs": (64, 128, 256, 512),
}
_NEAR = {"max_num_batched_tokens", "block_size", "max_num_seqs"}  # the next values only


def layouts(fleet: Fleet, families: Iterable[Family]) -> Iterator[tuple[Group, ...]]:
    """Every way to spend the budget on nodes of these families, splits of very many nodes
    thinned out. None leaves GPUs idle that one of its own kinds of nodes could use."""
    wanted = set(families)
    kinds = [kind for kind in fleet.kinds if fleet.gpus.get(kind.hardware, 0) >= kind.gpus]
    if "mixed" in wanted:
        for kind in kinds:
            yield (Group("mixed", fleet.gpus[kind.hardware] // kind.gpus, kind.name),)
    for first in kinds:
        for second in kinds:
            for prefill, decode in _pairs(fleet, first, second):
                split = Group("prefill", prefill, first.name), Group("decode", decode, second.name)
                if "split" in wanted:
                    yield split
                if "hybrid" in wanted:
                    yield from _with_mixed(split, first, second)


def _pairs(fleet: Fleet, first: NodeKind, second: NodeKind) -> list[tuple[int, int]]:
    """(prefill nodes, decode nodes) that use up the budget."""
    budget, other = fleet.gpus[first.hardware], fleet.gpus[second.hardware]
    if first.hardware != second.hardware:
        return [(budget // first.gpus, other // second.gpus)]
    pairs = []
    for prefill in range(1, budget // first.gpus + 1):
        decode, idle = divmod(budget - prefill * first.gpus, second.gpus)
        if decode and idle < first.gpus:
            pairs.append((prefill, decode))
    return _thinned(pairs)


def _with_mixed(
    split: tuple[Group, Group], first: NodeKind, second: NodeKind
) -> Iterator[tuple[Group, ...]]:
    """Hybrids: nodes of one role or of both turned into mixed ones, of their own kind."""
    prefill, decode = split
    for mixed in _thinned(list(range(1, decode.count))):
        yield (
            prefill, Group("decode", decode.count - mixed, second.name),
            Group("mixed", mixed, second.name),
        )  # fmt: skip
    if first is second:
        return
    for mixed in _thinned(list(range(1, prefill.count))):
        yield (
            Group("prefill", prefill.count - mixed, first.name), decode,
            Group("mixed", mixed, first.name),
        )  # fmt: skip


def starting_points(
    fleet: Fleet, families: Iterable[Family], fixed: Mapping[str, Any], mean_prompt: float
) -> list[Candidate]:
    """Layouts with each size of a step, and blocks of which a prompt has a few hundred at most:
    more blocks are more work for those who keep account of them. The other options are as they
    are by default."""
    options: dict[str, Any] = {}
    if "block_size" not in fixed:
        few = (size for size in BLOCKS if mean_prompt / size <= _FEW_BLOCKS)
        options["block_size"] = next(few, BLOCKS[-1])
    if "max_num_batched_tokens" in fixed:
        return [Candidate.of(groups, options) for groups in layouts(fleet, families)]
    return [
        Candidate.of(groups, {**options, "max_num_batched_tokens": chunk})
        for groups in layouts(fleet, families)
        for chunk in CHUNKS
    ]


def moves(
    candidate: Candidate, defaults: Mapping[str, Any], fixed: Mapping[str, Any], slo: SLO
) -> list[Candidate]:
    """Everything that differs in one option and could matter."""
    found = []
    for key, values in _MOVES.items():
        if key in fixed or not _matters(key, candidate, slo):
            continue
        now = candidate.option(key)
        now = defaults[key] if now is None else now
        tried = _next(values, now) if key in _NEAR else [each for each in values if each != now]
        found += [candidate.with_options(**{key: value}) for value in tried]
    return found


def _matters(key: str, candidate: Candidate, slo: SLO) -> bool:
    if key == "disaggregate":
        return candidate.family != "mixed"
    if key == "routing":
        return sum(group.count for group in candidate.groups if group.role != "decode") > 1
    if key in ("admission", "prefill_order"):
        return slo != SLO()
    return True


def _next(values: tuple[Any, ...], now: Any) -> list[Any]:
    """Those right below and above."""
    below = [each for each in values if each < now]
    above = [each for each in values if each > now]
    return below[-1:] + above[:1]


def _thinned(values: list[Any]) -> list[Any]:
    if len(values) <= _MOST_SPLITS:
        return values
    step = (len(values) - 1) / (_MOST_SPLITS - 1)
    return [values[round(i * step)] for i in range(_MOST_SPLITS)]
