"""`pd tune`: the configuration with the highest goodput, found by simulation."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd.cli.arguments import add_config_flags, config_flags
from pd.cli.cell import console, table
from pd.cli.files import check_writable, write_text
from pd.cli.simulate import CONFIGURED
from pd.cli.workload import add_slo_flags, add_workload_flags, slo_of, workload_spec
from pd.config import Config, ModelConfig
from pd.errors import ConfigError

if TYPE_CHECKING:
    from pd.tune.problem import Problem
    from pd.tune.search import Searched

_LAYOUT = {"prefill", "decode", "mixed"}
_REQUESTS = 4000  # of a workload without an end of its own
_SHOWN = 12
_CONFIG, _RESULT, _REPORT = "config.yaml", "result.json", "report.html"

DESCRIPTION = """\
Search layouts (prefill and decode nodes, mixed nodes, both), GPUs a node, sizes of steps and blocks
and policies for the highest rate of a workload at which the goal is reached. Candidates are
estimated from the cost models, and simulated by the code of 'pd serve'.

  pd tune --cost 'llama-3.1-70b-h100-*' --gpus 16 --workload trace.jsonl.gz \\
      --slo-ttft-ms 10000 --slo-tpot-ms 50 --minutes 5 --out tuned
  pd serve --config tuned/config.yaml

Options of the configuration that are given are kept; the others are searched.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="search the configuration with the highest goodput",
        usage="pd tune --cost MODEL --gpus N --slo-ttft-ms MS --slo-tpot-ms MS [OPTION ...]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("search")
    group.add_argument(
        "--cost", action="append", required=True, metavar="MODEL",
        help="a kind of node to choose from: a cost model's file, a shipped one's name or a "
        "pattern of names; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--gpus", required=True, metavar="N",
        help="GPUs there are (CPU nodes count as one each), or of several kinds: h100=8,a100=8",
    )  # fmt: skip
    group.add_argument(
        "--gpus-per-host",
        type=int,
        default=8,
        metavar="N",
        help="that share fast links (default: 8)",
    )
    group.add_argument(
        "--sharing", type=Path, metavar="FILE",
        help="what nodes of one host cost each other, as scripts/measure_sharing.py measures it "
        "(default: nothing)",
    )  # fmt: skip
    group.add_argument(
        "--families", default="mixed,split,hybrid", metavar="LIST",
        help="which of mixed, split (prefill and decode nodes) and hybrid (all three) to try "
        "(default: all)",
    )  # fmt: skip
    group.add_argument(
        "--goal", type=float, default=0.9, metavar="SHARE",
        help="of the requests, that have to meet the targets (default: 0.9)",
    )  # fmt: skip
    group.add_argument(
        "--minutes", type=float, default=5.0, metavar="M",
        help="that it may take; more time is more candidates and longer runs (default: 5)",
    )  # fmt: skip
    group.add_argument(
        "--jobs", type=int, default=None, metavar="N", help="processes (default: one a core)"
    )
    group.add_argument(
        "--out", type=Path, default=Path("tuned"), metavar="DIR",
        help="where config.yaml, report.html and result.json are written (default: tuned)",
    )  # fmt: skip
    add_workload_flags(parser)
    add_slo_flags(parser)
    parser.add_argument("--config", metavar="FILE", help="a YAML file that has the other options")
    add_config_flags(parser, (CONFIGURED | {"model"}) - _LAYOUT)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.tune.report import report
    from pd.tune.result import to_dict
    from pd.tune.search import Search
    from pd.tune.study import study
    from pd.tune.workers import Workers

    problem = _problem(args)
    if not args.minutes > 0:
        raise ConfigError(f"--minutes must be above 0, not {args.minutes:g}")
    jobs = args.jobs or len(os.sched_getaffinity(0))
    seconds = 60.0 * args.minutes
    deadline = time.monotonic() + 0.95 * seconds
    for name in (_CONFIG, _RESULT, _REPORT):
        check_writable(args.out / name)
    with Workers(problem, jobs) as workers, _Bars() as bars:
        searched = Search(problem, workers, seconds, bars.update).run()
        studied = study(problem, workers, searched, deadline, bars.update)
    config = _yaml(problem, searched)
    searched.wall_s = time.monotonic() - deadline + 0.95 * seconds
    commands = _commands(args, problem, searched)
    result = to_dict(problem, searched, studied)
    write_text(args.out / _CONFIG, config)
    write_text(args.out / _RESULT, json.dumps(result, indent=1) + "\n")
    write_text(
        args.out / _REPORT,
        report(problem, searched, studied, _changed(problem, searched), commands),
    )
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _show(problem, searched)
    return 0


def _problem(args: argparse.Namespace) -> Problem:
    from pd.cli.load import load_config
    from pd.config import DEFAULT_KV_BYTES_CPU, GIB
    from pd.cost.sharing import Sharing
    from pd.tune.candidate import check_families
    from pd.tune.fleet import Fleet, find_kinds, parse_gpus
    from pd.tune.problem import Problem
    from pd.types import SLO

    kinds = find_kinds(args.cost)
    if args.gpus_per_host < 1:
        raise ConfigError(f"--gpus-per-host must be at least 1, not {args.gpus_per_host}")
    sharing = None if args.sharing is None else Sharing.load(args.sharing)
    fleet = Fleet(tuple(kinds), parse_gpus(args.gpus, kinds), args.gpus_per_host, sharing)
    given = config_flags(args)
    given.pop("seed", None)  # the workload's, not that of dummy weights
    fixed = dict(given)
    if args.config is None:
        given = {"pool_dram_gib": 0.0, **given}
    base = load_config(args.config, given)
    if base.cache.kv_cache_gib is None and any(kind.kv_tokens is None for kind in kinds):
        # What a node without a GPU takes when it is left to choose.
        cache = replace(base.cache, kv_cache_gib=DEFAULT_KV_BYTES_CPU / GIB)
        base = replace(base, cache=cache)
    spec = workload_spec(args)
    if spec.file is None and spec.num_requests is None and spec.duration_s is None:
        spec = replace(spec, num_requests=_REQUESTS)
    return Problem.of(
        base=base, slo=slo_of(args) or SLO(), fleet=fleet, workload=spec.make(), goal=args.goal,
        families=check_families([each.strip() for each in args.families.split(",")]),
        fixed=fixed, seed=args.seed,
    )  # fmt: skip


def _yaml(problem: Problem, searched: Searched) -> str:
    """A configuration file, with what it was made for on top."""
    from pd.cli.load import dump_config
    from pd.tune.report import said

    best = searched.best
    lines = [
        f"# {best.candidate.layout(problem.fleet)}: {best.rate:.4g} requests/s of "
        f"{problem.workload.name} with {problem.goal:.0%} of them within {said(problem.slo)},",
        f"# simulated with {best.found.requests if best.found else 0} requests.",
    ]
    lines += [
        f"# {group.role} nodes: {group.count} of {problem.fleet.kind(group.kind).gpus} GPUs, "
        f"by the cost model {group.kind}."
        for group in best.candidate.groups
    ]
    config = best.candidate.config(problem.base, problem.fleet)
    about = problem.fleet.kinds[0].cost.about.get("model")
    if about and config.model == ModelConfig():
        lines.append(f"# The cost model is of {about}: say with model.model where that is.")
    return "\n".join(lines) + "\n\n" + dump_config(config)


def _changed(problem: Problem, searched: Searched) -> str:
    """What of the configuration is not as by default, as YAML."""
    config = searched.best.candidate.config(problem.base, problem.fleet)
    lines = []
    usual = Config().to_dict()
    for section, values in config.to_dict().items():
        changed = {key: each for key, each in values.items() if each != usual[section][key]}
        if changed:
            lines.append(f"{section}:")
            lines += [f"  {key}: {json.dumps(each)}" for key, each in changed.items()]
    return "\n".join(lines)


def _commands(args: argparse.Namespace, problem: Problem, searched: Searched) -> list[str]:
    """How to serve what was found, and how to see it simulated again."""
    from pd.tune.result import simulate_command

    best = searched.best
    config = str(args.out / _CONFIG)
    words = [simulate_command(best.candidate, problem, config)]
    if args.sharing is not None:
        words.append(f"--sharing {args.sharing}")
    if args.workload is not None:
        words.append(f"--workload {args.workload}")
        if args.longest is not None:
            words.append(f"--longest {args.longest}")
        words.append(f"--requests {best.found.requests if best.found else 0}")
        words.append(f"--rate {best.rate!r}")
        for name in ("ttft", "tpot"):
            value = getattr(args, f"slo_{name}_ms")
            words += [] if value is None else [f"--slo-{name}-ms {value:g}"]
        return [f"pd serve --config {config}", "pd simulate " + " ".join(words)]
    return [f"pd serve --config {config}"]


def _show(problem: Problem, searched: Searched) -> None:
    from pd.tune.result import HEADINGS, rows

    made = table(*HEADINGS, text=5)
    for row in rows(problem, searched.ranked, _SHOWN):
        made.add_row(*row)
    console().print(made)
    print(
        f"{searched.num_candidates} candidates, {len(searched.ranked)} simulated in "
        f"{searched.num_runs} runs of {searched.num_requests} requests, {searched.wall_s:.0f} s"
    )
    for note in searched.notes:
        print(f"note: {note}")


class _Bars:
    """A bar for each stage on a terminal; a line for each elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
        )

        self._screen = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), console=self._screen, disable=not self._screen.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, stage: str, done: int, count: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=count)
            if not self._screen.is_terminal:
                elapsed = time.monotonic() - self._began
                print(f"==> [{elapsed:5.1f} s] {stage}", file=sys.stderr, flush=True)
        self._bars.update(self._tasks[stage], completed=done, total=count)
