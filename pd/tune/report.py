"""The report of a search as one HTML page: who won, by how much, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pd.report.bars import bars_svg
from pd.report.chart import Line, Panel, chart_svg
from pd.report.heatmap import versus_svg
from pd.report.page import Page
from pd.tune.candidate import Family
from pd.tune.portrait import STAGES, Portrait
from pd.tune.problem import Problem
from pd.tune.result import HEADINGS, by_targets, rank_correlation, rows
from pd.tune.search import Searched
from pd.tune.study import Measured, Study, targets_around
from pd.types import SLO
from pd.workload.curves import cumulative

FAMILY_NAMES: dict[Family, str] = {
    "mixed": "mixed", "split": "prefill + decode", "hybrid": "prefill + decode + mixed",
}  # fmt: skip
_COLOURS: dict[Family, str] = {"mixed": "#d97706", "split": "#2563eb", "hybrid": "#059669"}
_ROLES = {"prefill": "#2563eb", "decode": "#dc2626", "mixed": "#d97706"}
_STAGES = dict(zip(STAGES, ("#94a3b8", "#7c3aed", "#2563eb", "#d97706", "#059669")))
_MISSES = {"met": "#059669", "TTFT": "#2563eb", "TPOT": "#d97706", "both": "#dc2626",
           "rejected": "#94a3b8"}  # fmt: skip
_GREY = "#94a3b8"
_ROWS = 14


def report(
    problem: Problem, searched: Searched, study: Study, config_yaml: str, commands: Sequence[str]
) -> str:
    """The page. `commands` start and check what was found."""
    best = searched.best
    page = Page(f"Tuning for {problem.workload.name}")
    page.paragraph(
        f"{best.candidate.layout(problem.fleet)} serves {best.rate:.3g} requests/s with "
        f"{problem.goal:.0%} of them within {said(problem.slo)}: "
        f"{best.rate / problem.fleet.num_gpus:.3g} a GPU, of {_gpus(problem)}."
    )
    for sentence in why(problem, study):
        page.paragraph(sentence)
    page.heading("The best that was found")
    page.table(HEADINGS, rows(problem, searched.ranked, _ROWS))
    page.paragraph(
        "Goodput is the highest rate that was seen to hold, per GPU of the whole budget. Rows are "
        "ordered by the length of their runs first: short runs flatter. Estimates come from the "
        "cost model alone.", note=True,
    )  # fmt: skip
    page.heading("Attainment and latencies")
    page.grid([_drawn(panel) for panel in _curves(problem, study)])
    page.paragraph(
        f"Curves, shares and courses are of runs of {study.requests} requests each.", note=True
    )
    page.heading("Why")
    page.grid(_reasons(problem, study))
    page.heading(f"Course of a run at {best.rate:.3g} requests/s")
    for family, portrait in study.portraits.items():
        page.paragraph(f"{FAMILY_NAMES[family]}: {portrait.candidate.layout(problem.fleet)}")
        page.grid([_drawn(panel) for panel in course(portrait)])
    maps = target_maps(problem, study)
    if maps:
        page.heading("Other targets")
        page.grid(maps)
        page.paragraph(
            "From the runs of each family's best, which was chosen for the targets in the middle "
            "and not chosen anew for others.", note=True,
        )  # fmt: skip
    page.heading("The configuration")
    page.code("\n".join(commands))
    page.code(config_yaml)
    page.heading("The search")
    page.paragraph(_search(searched))
    for note in searched.notes:
        page.paragraph(note, note=True)
    return page.html


def said(slo: SLO) -> str:
    """Targets in words."""
    parts = []
    if slo.ttft_s is not None:
        parts.append(f"a TTFT of {slo.ttft_s * 1e3:g} ms")
    if slo.tpot_s is not None:
        parts.append(f"a TPOT of {slo.tpot_s * 1e3:g} ms")
    return " and ".join(parts)


def why(problem: Problem, study: Study) -> list[str]:
    """What the others lack at the winner's rate, and what keeps each from more, in sentences."""
    sentences = []
    goals = sorted(study.best, key=lambda family: -study.best[family].rate)
    for family in goals:
        portrait = study.portraits[family]
        shares = shares_of(portrait, problem.slo)
        misses = {name: share for name, share in shares.items() if name != "met" and share > 0}
        busy = ", ".join(f"{role} {share:.0%}" for role, share in portrait.result.busy().items())
        worst = max(misses, key=lambda name: misses[name], default="")
        cause = ""
        if worst:
            words = {"TTFT": "for a late first token", "TPOT": "for slow tokens",
                     "both": "for both", "rejected": "rejected or failed"}  # fmt: skip
            cause = f", most of the others missing {words[worst]}"
            if worst == "rejected":
                cause = ", most of the others rejected or failed"
        behind = ""
        if family != goals[0] and study.best[family].rate:
            times = study.best[goals[0]].rate / study.best[family].rate
            behind = f" (its own best is {study.best[family].rate:.3g}/s, {times:.2f} times less)"
        sentences.append(
            f"At {portrait.rate:.3g} requests/s, {FAMILY_NAMES[family]} has "
            f"{shares['met']:.1%} in time{cause}; its nodes compute {busy} of the time{behind}."
        )
    return sentences


def shares_of(portrait: Portrait, slo: SLO) -> dict[str, float]:
    """What became of a portrait's requests."""
    return Measured.of(portrait.candidate, portrait.rate, portrait.result.outcomes).shares(slo)


def course(portrait: Portrait) -> list[Panel]:
    """Queues, batches and busy share of each role over time."""
    roles = sorted({each.role for each in portrait.moments})
    looks: list[tuple[str, str, Any]] = [
        ("prompts waiting or computed", "prompts", lambda each: each.prompts),
        ("sequences decoding", "sequences", lambda each: each.sequences),
        ("computing", "% of time", lambda each: 100 * each.busy),
    ]
    panels = []
    for title, unit, value in looks:
        lines = [
            Line(
                f"{role} nodes",
                [(each.time_s, value(each)) for each in portrait.moments if each.role == role],
                _ROLES[role], dots=False, width=1.4,
            )
            for role in roles
        ]  # fmt: skip
        top = 100 if unit.startswith("%") else None
        panels.append(Panel(title, "seconds", unit, lines=lines, log_x=False, y_top=top))
    return [panel for panel in panels if any(line.points for line in panel.lines)]


def target_maps(problem: Problem, study: Study) -> list[str]:
    """Split against mixed, and the best with both kinds against the better of those, by target."""
    if not {"mixed", "split"} <= set(study.curves):
        return []
    ttfts, tpots = targets_around(problem.slo)
    found = {
        (each["ttft_s"], each["tpot_s"]): each["goodput"] for each in by_targets(problem, study)
    }
    columns = "TTFT target", [_ms(each) for each in ttfts]
    lines = "TPOT", [_ms(each) for each in tpots]
    pairs = [("split ahead of mixed, and by how much", "split", "mixed")]
    if "hybrid" in study.curves:
        pairs.append(("hybrid against the better of both", "hybrid", ""))
    maps = []
    for title, one, other in pairs:
        values = []
        for tpot_s in tpots:
            row = []
            for ttft_s in ttfts:
                rates = found[ttft_s, tpot_s]
                against = rates[other] if other else max(rates["mixed"], rates["split"])
                row.append((rates[one], against))
            values.append(row)
        maps.append(versus_svg(title, one, other or "the better", columns, lines, values))
    return maps


def _drawn(panel: Panel) -> str:
    return chart_svg(panel.title, [replace(panel, title="")])


def _curves(problem: Problem, study: Study) -> list[Panel]:
    attainment = []
    for family, curve in study.curves.items():
        points = sorted({(each.rate, 100 * each.shares(problem.slo)["met"]) for each in curve})
        attainment.append(Line(FAMILY_NAMES[family], points, _COLOURS[family]))
    rates = [each.rate for curve in study.curves.values() for each in curve]
    ends = [(min(rates), 100 * problem.goal), (max(rates), 100 * problem.goal)]
    attainment.append(Line("goal", ends, _GREY, "4 3", dots=False))
    panels = [
        Panel("attainment by rate, the best of each family", "requests per second",
              "% of requests in time", lines=attainment, log_x=False, y_top=100)
    ]  # fmt: skip
    for name, target in (("TTFT", problem.slo.ttft_s), ("TPOT", problem.slo.tpot_s)):
        lines = []
        for family, portrait in study.portraits.items():
            values = [
                each.ttft_s if name == "TTFT" else each.tpot_s
                for each in portrait.result.outcomes
                if each.status == "ok"
            ]
            points = [(x, 100 * y) for x, y in cumulative(1e3 * each for each in values if each)]
            lines.append(Line(FAMILY_NAMES[family], points, _COLOURS[family], dots=False))
        if target is not None:
            ends = [(1e3 * target, 0.0), (1e3 * target, 100.0)]
            lines.append(Line("target", ends, _GREY, "4 3", dots=False))
        rate = next(iter(study.portraits.values())).rate
        panels.append(
            Panel(f"{name} at {rate:.3g} requests/s", "milliseconds", "% of requests", lines=lines)
        )
    return [panel for panel in panels if any(line.points for line in panel.lines)]


def _reasons(problem: Problem, study: Study) -> list[str]:
    names = list(study.portraits)
    stages = [
        (stage, colour, [study.portraits[name].stages[stage] for name in names])
        for stage, colour in _STAGES.items()
    ]
    shares = [shares_of(study.portraits[name], problem.slo) for name in names]
    misses = [
        ({"met": "in time", "rejected": "rejected"}.get(miss, f"missed {miss}"), colour,
         [100 * each[miss] for each in shares])
        for miss, colour in _MISSES.items()
    ]  # fmt: skip
    shown = [
        (f"{name}: {role}"[:16], role, 100 * share)
        for name in names
        for role, share in study.portraits[name].result.busy().items()
    ]
    busy = [
        (f"{role} nodes", colour, [share if role == one else 0.0 for _, one, share in shown])
        for role, colour in _ROLES.items()
    ]
    rate = study.portraits[names[0]].rate
    return [
        bars_svg(f"where a request's time goes at {rate:.3g}/s", names, stages, "s"),
        bars_svg(f"what becomes of requests at {rate:.3g}/s", names, misses, "%"),
        bars_svg("time in which nodes compute", [each for each, _, _ in shown], busy, "%"),
    ]


def _search(searched: Searched) -> str:
    pairs = [(each.estimate, each.rate) for each in searched.ranked if each.rate]
    agreed = rank_correlation(pairs)
    order = "" if agreed is None else (
        f" Over those, estimates and simulations agree in their order by {agreed:.2f} "
        "(Spearman's rank correlation)."
    )  # fmt: skip
    return (
        f"{searched.num_candidates} candidates were estimated and {len(searched.ranked)} "
        f"simulated, in {searched.num_runs} runs of {searched.num_requests} requests together, "
        f"the longest of {searched.final_requests}; {searched.wall_s:.0f} s.{order}"
    )


def _gpus(problem: Problem) -> str:
    return " and ".join(f"{count} {name}" for name, count in problem.fleet.gpus.items())


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "any"
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
