"""What a search found, as plain data and as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pd.tune.candidate import Candidate
from pd.tune.problem import Problem
from pd.tune.search import Ranked, Searched
from pd.tune.study import Study, held, targets_around
from pd.types import SLO

HEADINGS = (
    "configuration", "family", "step", "block", "options", "goodput/s", "per GPU", "estimate",
    "requests",
)  # fmt: skip
_COLUMNS = {"max_num_batched_tokens", "block_size"}


def rows(problem: Problem, ranked: Sequence[Ranked], most: int) -> list[tuple[str, ...]]:
    """The best of those that hold any rate."""
    return [row(problem, each) for each in ranked if each.rate][:most]


def row(problem: Problem, ranked: Ranked) -> tuple[str, ...]:
    candidate, fleet = ranked.candidate, problem.fleet
    config = candidate.config(problem.base, fleet)
    others = ", ".join(f"{key}={value}" for key, value in candidate.options if key not in _COLUMNS)
    return (
        candidate.layout(fleet), candidate.family, str(config.scheduler.token_budget("cuda")),
        str(config.cache.block_size), others or "-", f"{ranked.rate:.3f}",
        f"{ranked.rate / fleet.num_gpus:.4f}", f"{ranked.estimate:.3f}",
        str(ranked.found.requests if ranked.found else 0),
    )  # fmt: skip


def to_dict(problem: Problem, searched: Searched, study: Study) -> dict[str, Any]:
    """Everything for JSON; rates are requests a second, times seconds."""
    fleet = problem.fleet
    return {
        "workload": {
            "name": problem.workload.name,
            "requests": len(problem.workload),
            "mean_prompt": problem.workload.num_prompt_tokens / len(problem.workload),
            "mean_output": problem.workload.num_output_tokens / len(problem.workload),
        },
        "slo": asdict(problem.slo),
        "goal": problem.goal,
        "hardware": {"gpus": dict(fleet.gpus), "nodes": [each.name for each in fleet.kinds]},
        "search": {
            "candidates": searched.num_candidates,
            "simulated": len(searched.ranked),
            "runs": searched.num_runs,
            "requests": searched.num_requests,
            "requests_of_a_long_run": searched.final_requests,
            "wall_s": searched.wall_s,
            "estimate_rank_correlation": rank_correlation(
                [(each.estimate, each.rate) for each in searched.ranked if each.rate]
            ),
            "notes": searched.notes,
        },
        "best": _ranked(problem, searched.best),
        "best_of_family": {name: _ranked(problem, each) for name, each in study.best.items()},
        "ranked": [_ranked(problem, each) for each in searched.ranked],
        "curves": {
            name: [{"rate": each.rate, **each.shares(problem.slo)} for each in curve]
            for name, curve in study.curves.items()
        },
        "by_targets": by_targets(problem, study),
        "at_the_best_rate": {
            name: {**portrait.result.to_dict(problem.slo), "stages": dict(portrait.stages)}
            for name, portrait in study.portraits.items()
        },
    }


def by_targets(problem: Problem, study: Study) -> list[dict[str, Any]]:
    """Goodput of each family's best under targets around those that it was chosen for, from the
    runs of its curve."""
    found = []
    ttfts, tpots = targets_around(problem.slo)
    for ttft_s in ttfts:
        for tpot_s in tpots:
            slo = SLO(ttft_s, tpot_s)
            rates = {name: held(curve, slo, problem.goal) for name, curve in study.curves.items()}
            found.append({"ttft_s": ttft_s, "tpot_s": tpot_s, "goodput": rates})
    return found


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, ties by order; None of fewer than three."""
    count = len(pairs)
    if count < 3:
        return None
    places = []
    for side in (0, 1):
        order = sorted(range(count), key=lambda i: pairs[i][side])
        place = [0] * count
        for rank, i in enumerate(order):
            place[i] = rank
        places.append(place)
    squares = sum((a - b) ** 2 for a, b in zip(*places))
    return 1 - 6 * squares / (count * (count * count - 1))


def simulate_command(candidate: Candidate, problem: Problem, config: str) -> str:
    """The flags of `pd simulate` that name this cell; the workload is for the caller to add."""
    fleet = problem.fleet
    first, *others = candidate.groups
    words = [f"--config {config}", f"--cost {first.kind}"]
    words += [f"--{each.role}-cost {each.kind}" for each in others if each.kind != first.kind]
    largest = max(fleet.kind(each.kind).gpus for each in candidate.groups)
    words.append(f"--nodes-per-host {max(1, fleet.gpus_per_host // largest)}")
    return " ".join(words)


def _ranked(problem: Problem, ranked: Ranked) -> dict[str, Any]:
    found = ranked.found
    assert found is not None
    return {
        **ranked.candidate.to_dict(problem.fleet),
        "goodput": ranked.rate,
        "goodput_per_gpu": ranked.rate / problem.fleet.num_gpus,
        "does_not_hold": found.limit if found.limit < float("inf") else None,
        "estimate": ranked.estimate,
        "requests": found.requests,
        "rung": ranked.rung,
        "finished": found.finished,
        "runs": [asdict(probe) for probe in found.probes],
    }
