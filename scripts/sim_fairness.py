#!/usr/bin/env python3
"""Fairness between tenants and aging, simulated.

    python scripts/sim_fairness.py [--seconds 60] [--seeds 2]

Two tenants: `light` asks at a tenth of what one prefill node can take, `heavy` at ten times that,
so that both together are more than the cell can do. Every setting gets the same requests of
light's; what is compared is the time to its first token alone, beside heavy, and beside heavy
with `fairness: vtc`, by the tokens that fit into a step. Where it says decode, outputs are long and
the decode node has few seats, so that those are what is short: shares are of what it can decode.

The service gap is that between two tenants who both ask for more than the cell has, two and ten
times as much: the most by which service given to one was ahead of the other's in any span of time
after the first third, beside the published bound, and its course. Where prompts are what is short,
service is tokens of prompts; where seats are, tokens of prompts and twice those of outputs.

Aging: under `sjf` short prompts come faster than they can be computed, without end, and a few long
ones among them. What is measured is the longest wait of a long one, against `aging_s`, and beside
it how long that would have been without aging.
Nodes are as Llama 3.1 70B on 4 H100.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchlib.cells import say
from benchlib.environment import ROOT, environment
from benchlib.report import options_of, percentile, show_table, write_json
from benchlib.simulated import COST, Run, Window, cell_of, seconds, steady

from pd.cost import library
from pd.cost.load import StepLoad
from pd.cost.model import CostModel
from pd.policies.fairness import OUTPUT_COST, PROMPT_COST
from pd.types import SLO
from pd.workload.arrival import Arrival, Workload
from pd.workload.lengths import Constant, LogNormal
from pd.workload.outcome import Outcome
from pd.workload.synthetic import BLOCK_TOKENS

CHUNK = 2048
LIGHT, HEAVY = "light", "heavy"
PROMPTS, OUTPUTS = LogNormal(1155, 0.95, 4000), Constant(16)
DECODE = {"max_num_seqs": 64}
LONG_OUTPUTS = Constant(300)
PD = {"prefill": 1, "decode": 1, "disaggregate": "always", "max_num_batched_tokens": CHUNK}
TAIL_S = 5.0
NO_SLO = SLO()


def merged(*loads: Sequence[Arrival]) -> Workload:
    arrivals = sorted((each for load in loads for each in load), key=lambda each: each.time_s)
    return Workload("tenants", arrivals, BLOCK_TOKENS)


def of_tenant(tenant: str, load: Workload) -> list[Arrival]:
    return [replace(each, tenant=tenant) for each in load]


def rate_of(cost: CostModel, chunk: int = CHUNK) -> float:
    """Prompts a second that one prefill node can take."""
    rng = random.Random("rate")
    lengths = [PROMPTS.draw(rng) for _ in range(2000)]
    return len(lengths) / sum(cost.prefill_s(each, 0, chunk) for each in lengths)


def decode_rate_of(cost: CostModel) -> float:
    """Requests a second that the decode node can take, all its seats taken."""
    seats, length = DECODE["max_num_seqs"], LONG_OUTPUTS.tokens
    context = seats * round(1155 + length / 2)
    return seats / (length * cost.step_s(StepLoad.decode(seats, context)))


def ttfts(
    cost: CostModel, workload: Workload, length_s: float, chunk: int, **options: Any
) -> list[float]:
    """Of light's requests that arrived in the last nine tenths of the time."""
    spec = cell_of(cost, NO_SLO, **_cell({**options, "max_num_batched_tokens": chunk}))
    run = Run(spec, NO_SLO, Window(0.1 * length_s, length_s), TAIL_S)
    run.of(workload)
    return [
        each.ttft_s for each in run.outcomes
        if each.arrival.tenant == LIGHT and each.ttft_s is not None
        and run.window.holds(each.arrival.time_s)
    ]  # fmt: skip


def tenants(
    cost: CostModel, length_s: float, seeds: int, chunk: int, *, decode: bool = False
) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {"alone": [], "none": [], "vtc": []}
    # The same load whatever the chunk.
    per_s = 0.1 * (decode_rate_of(cost) if decode else rate_of(cost))
    outputs, options = (LONG_OUTPUTS, DECODE) if decode else (OUTPUTS, {})
    for seed in range(seeds):
        light = of_tenant(LIGHT, steady(per_s, length_s, seed, PROMPTS, outputs))
        heavy = of_tenant(HEAVY, steady(10 * per_s, length_s, 1000 + seed, PROMPTS, outputs))
        both = merged(light, heavy)
        found["alone"] += ttfts(cost, merged(light), length_s, chunk, fairness="vtc", **options)
        for fairness in ("none", "vtc"):
            found[fairness] += ttfts(cost, both, length_s, chunk, fairness=fairness, **options)
        say(f"tenants, seed {seed}")
    alone = statistics.mean(found["alone"])
    return [
        {
            "short": "decode" if decode else "prefill",
            "chunk": chunk, "setting": name, "requests": len(values),
            "mean_s": statistics.mean(values),
            "p50_s": percentile(values, 0.5), "p99_s": percentile(values, 0.99),
            "of_alone": statistics.mean(values) / alone, "more_s": statistics.mean(values) - alone,
            "full_step_s": cost.prefill_s(chunk, 0, chunk),
        }
        for name, values in found.items()
    ]  # fmt: skip


def widest_gap(served: Sequence[tuple[float, str, float]]) -> float:
    """The most by which one of two tenants was given more than the other in any span of time.

    `served` is (when, to whom, how much) in order: the widest range of the running difference.
    """
    difference = most = least = 0.0
    first = served[0][1] if served else ""
    for _, tenant, amount in served:
        difference += amount if tenant == first else -amount
        most, least = max(most, difference), min(least, difference)
    return most - least


def course(served: Sequence[tuple[float, str, float]]) -> list[tuple[int, float]]:
    """By how much light was ahead at the end of every second."""
    ahead, rows = 0.0, {}
    for at, tenant, amount in served:
        ahead += amount if tenant == LIGHT else -amount
        rows[int(at)] = ahead
    return list(rows.items())


def service(outcomes: Sequence[Outcome], *, outputs: bool) -> list[tuple[float, str, float]]:
    """When, to whom and how much: a prompt's at its first token, and then token by token."""
    served = []
    for each in outcomes:
        if each.ttft_s is None:
            continue
        tenant, at = each.arrival.tenant, each.arrival.time_s + each.ttft_s
        served.append((at, tenant, PROMPT_COST * each.arrival.num_prompt))
        if outputs and each.tpot_s is not None:
            served += [(at + i * each.tpot_s, tenant, OUTPUT_COST) for i in range(each.num_output)]
    return sorted(served)


def service_gap(
    cost: CostModel, length_s: float, fairness: str, *, decode: bool = False
) -> dict[str, Any]:
    """Two tenants at two and at ten times the capacity, so that both always wait."""
    per_s = decode_rate_of(cost) if decode else rate_of(cost)
    outputs, more = (LONG_OUTPUTS, DECODE) if decode else (OUTPUTS, {})
    light = of_tenant(LIGHT, steady(2 * per_s, length_s, 7, PROMPTS, outputs))
    heavy = of_tenant(HEAVY, steady(10 * per_s, length_s, 8, PROMPTS, outputs))
    window, tail = Window(0.0, length_s), 15.0 if decode else 0.0  # until those have ended
    run = Run(cell_of(cost, NO_SLO, **_cell({"fairness": fairness, **more})), NO_SLO, window, tail)
    run.of(merged(light, heavy))
    served = service(run.outcomes, outputs=decode)
    # Both wait all the time by then.
    served = [each for each in served if length_s / 3 <= each[0] < length_s]
    longest = max(each.num_prompt for each in [*light, *heavy])
    # What fits into the batch: a step's tokens, or all seats with all that they may hold.
    batch = DECODE["max_num_seqs"] * (longest + LONG_OUTPUTS.tokens) if decode else CHUNK
    shares = {name: sum(each[2] for each in served if each[1] == name) for name in (LIGHT, HEAVY)}
    return {
        "short": "decode" if decode else "prefill",
        "fairness": fairness,
        "gap_tokens": widest_gap(served),
        "bound_tokens": 2 * max(PROMPT_COST * longest, OUTPUT_COST * batch),
        "longest_prompt": longest,
        "batch_tokens": batch,
        "served_tokens": shares,
        "light_ahead": course(served),
    }


def aging(cost: CostModel, length_s: float, aging_s: float) -> dict[str, Any]:
    """Short prompts at 1.2 times the capacity, long ones in between."""
    short, long = Constant(200), Constant(4000)
    in_a_step = CHUNK // short.tokens
    rate = 1.2 * in_a_step / cost.prefill_s(in_a_step * short.tokens, 0, CHUNK)
    shorts = of_tenant("", steady(rate, length_s, 1, short, Constant(2)))
    longs = [Arrival(5.0 + 2.0 * i, long.tokens, 2) for i in range(int(length_s / 4))]
    window = Window(0.0, length_s)
    options = _cell({"prefill_order": "sjf", "aging_s": aging_s, "fairness": "none"})
    run = Run(cell_of(cost, NO_SLO, **options), NO_SLO, window)
    run.of(merged(shorts, longs))
    waits = [
        each.ttft_s for each in run.outcomes
        if each.arrival.num_prompt == long.tokens and each.ttft_s is not None
    ]  # fmt: skip
    served = {
        each.arrival.time_s for each in run.outcomes if each.arrival.num_prompt == long.tokens
    }
    due = [each.time_s for each in longs if each.time_s < run.end_s]
    unserved = [run.end_s - each for each in due if each not in served]
    backlog = max((each.ttft_s or 0.0 for each in run.outcomes), default=0.0)
    return {
        "aging_s": aging_s, "long": len(longs), "served": len(waits),
        "longest_wait_s": max([*waits, *unserved], default=0.0),
        "own_work_s": cost.prefill_s(long.tokens, 0, CHUNK),
        "longest_of_all_s": backlog, "seconds": run.end_s,
    }  # fmt: skip


def _cell(options: dict[str, Any]) -> dict[str, Any]:
    return {**PD, "admission": "none", **options}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cost", default=COST, help="cost model: a file or a shipped one's name")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals in each run")
    parser.add_argument("--seeds", type=int, default=2, help="runs with two tenants")
    parser.add_argument(
        "--chunks",
        type=int,
        nargs="+",
        default=[256, 512, 2048],
        help="tokens that fit into a step",
    )
    parser.add_argument("--aging-s", type=float, nargs="+", default=[5.0, 10.0, 1e6])
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "sim_fairness.json")
    args = parser.parse_args()
    cost = library.find(args.cost)
    ttft = [row for each in args.chunks for row in tenants(cost, args.seconds, args.seeds, each)]
    ttft += tenants(cost, args.seconds, args.seeds, CHUNK, decode=True)
    gaps = [
        service_gap(cost, args.seconds / 2, each, decode=decode)
        for decode in (False, True) for each in ("none", "vtc")
    ]  # fmt: skip
    say("service gaps")
    waits = [aging(cost, args.seconds, each) for each in args.aging_s]
    show_table(
        "TTFT of a tenant beside one that asks ten times as much",
        ("", "requests", "mean", "p50", "p99", "mean / alone", "more"),
        [
            (
                f"{row['short']}, {row['setting']}, {row['chunk']}", str(row["requests"]),
                seconds(row["mean_s"]), seconds(row["p50_s"]), seconds(row["p99_s"]),
                f"{row['of_alone']:.2f}", seconds(row["more_s"]),
            )
            for row in ttft
        ],
    )  # fmt: skip
    show_table(
        "Service gap of two tenants that always wait, in tokens",
        ("what is short, fairness", "gap", "bound", "light", "heavy"),
        [
            (
                f"{row['short']}, {row['fairness']}",
                *(f"{row[name]:,.0f}" for name in ("gap_tokens", "bound_tokens")),
                *(f"{row['served_tokens'][name]:,.0f}" for name in (LIGHT, HEAVY)),
            )
            for row in gaps
        ],
    )  # fmt: skip
    show_table(
        "Long prompts among endless short ones, sjf",
        ("aging_s", "long", "served", "longest wait", "its own work", "longest wait of any"),
        [
            (
                f"{row['aging_s']:g}", str(row["long"]), str(row["served"]),
                seconds(row["longest_wait_s"]), seconds(row["own_work_s"]),
                seconds(row["longest_of_all_s"]),
            )
            for row in waits
        ],
    )  # fmt: skip
    report = {"environment": environment(), "options": options_of(args)}
    write_json(args.json, {**report, "ttft": ttft, "gaps": gaps, "aging": waits})
    return 0


if __name__ == "__main__":
    sys.exit(main())
