"""`pd bench`: send a load to a server, and see how much of it meets its targets."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pd.cli.arguments import DEFAULT_URL, add_client_flags, server_url
from pd.cli.files import check_writable, write_text
from pd.cli.workload import add_slo_flags, add_workload_flags, slo_of, workload_spec
from pd.errors import ConfigError

if TYPE_CHECKING:
    from pd.bench.measure import Bench, Measured
    from pd.cli.bench_output import RunProgress
    from pd.workload.spec import WorkloadSpec

DESCRIPTION = """\
Send a load to an OpenAI-compatible server at its own pace, whatever the server makes of it
(an open loop), and report TTFT, TPOT and goodput: requests that met all targets, per second.

  pd bench --rate 2 --slo-ttft-ms 500 --slo-tpot-ms 60      made-up requests
  pd bench --workload trace.jsonl.gz --scale-length 0.0625 --rate 2 --requests 200
  pd bench ... --rates 1,2,4 --report bench.html            attainment by rate, in pictures
  pd bench ... --search                                     the highest rate with 90 % in time
  pd bench ... --compare http://127.0.0.1:9000              two servers in turn
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="measure a server under load",
        usage="pd bench [--url URL] [OPTION ...]", description=DESCRIPTION,
    )  # fmt: skip
    add_client_flags(parser)
    parser.add_argument("--model", metavar="NAME", help="the model (default: the only one)")
    parser.add_argument(
        "--prompts", choices=("auto", "ids", "text"), default="auto",
        help="token ids, words, or ids where the server takes them (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--vocab-size", type=int, metavar="N",
        help="token ids of prompts are below N (default: what the server tells, else 30000)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout-s", type=float, default=300.0, metavar="S",
        help="a request fails after a silence of S seconds (default: 300)",
    )  # fmt: skip
    add_workload_flags(parser)
    add_slo_flags(parser)
    _add_run_flags(parser)
    parser.set_defaults(run=run)


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("runs", "One run, unless one of the first three is given.")
    group.add_argument("--rates", metavar="R,R,...", help="a run at each of these rates")
    group.add_argument("--search", action="store_true", help="find the highest rate that holds")
    group.add_argument("--compare", metavar="URL2", help="another server, run in turn with --url")
    group.add_argument(
        "--goal", type=float, metavar="X",
        help="of --search: share of requests that have to meet their targets (default: 0.9)",
    )  # fmt: skip
    group.add_argument(
        "--tolerance", type=float, metavar="X",
        help="of --search: how far apart the rate found and one that fails may be (default: 0.05)",
    )  # fmt: skip
    group.add_argument(
        "--repeats", type=int, metavar="N",
        help="runs at each rate of --search, or of each server with --compare (default: 2)",
    )  # fmt: skip
    group.add_argument(
        "--warmup", type=int, default=2, metavar="N",
        help="requests sent before everything else, one by one, and not counted (default: 2)",
    )  # fmt: skip
    group.add_argument(
        "--ramp-s", type=float, default=0.0, metavar="S",
        help="do not count requests that arrive in the first S seconds of a run (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--salt", type=int, metavar="N",
        help="prompts are made of it: the same salt sends the same ones again, which a cache may "
        "know (default: another each time)",
    )  # fmt: skip
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    group.add_argument(
        "--record", type=Path, metavar="FILE",
        help="write every request of the last run, as a log that --workload reads",
    )  # fmt: skip
    group.add_argument(
        "--report", type=Path, metavar="FILE", help="write a page (.html) or its pictures (.svg)"
    )


def run(args: argparse.Namespace) -> int:
    from pd.bench.search import RateSearch

    spec, slo = workload_spec(args), slo_of(args)
    modes = [name for name in ("rates", "search", "compare") if getattr(args, name)]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]} exclude each other")
    for name in ("goal", "tolerance"):
        if getattr(args, name) is not None and not args.search:
            raise ConfigError(f"--{name} is of --search")
    if args.repeats is not None and not (args.search or args.compare):
        raise ConfigError("--repeats is of --search and --compare")
    if args.repeats is not None and args.repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, not {args.repeats}")
    if args.rates and args.rate:
        raise ConfigError("--rate and --rates exclude each other")
    if args.search and slo is None:
        raise ConfigError("--search needs targets: --slo-ttft-ms, --slo-tpot-ms or both")
    if args.warmup < 0 or args.ramp_s < 0 or args.timeout_s <= 0:
        raise ConfigError("--warmup and --ramp-s must not be negative, --timeout-s above 0")
    if args.report is not None and args.report.suffix not in (".html", ".svg"):
        raise ConfigError(f"--report {args.report}: the name must end in .html or .svg")
    for path in (args.json, args.record, args.report):
        check_writable(path)
    rates = _rates(args.rates)
    plan = None
    if args.search:
        start = spec.rate or spec.make().rate
        try:
            plan = RateSearch(
                start, goal=0.9 if args.goal is None else args.goal,
                tolerance=0.05 if args.tolerance is None else args.tolerance,
                repeats=args.repeats or 2,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return asyncio.run(_bench(args, spec, rates, plan))


async def _bench(
    args: argparse.Namespace, spec: WorkloadSpec, rates: Sequence[float], plan: Any
) -> int:
    from pd.cli.bench_output import RunProgress

    progress = RunProgress()
    try:
        return await _measured(args, spec, rates, plan, progress)
    finally:
        progress.close()


async def _measured(
    args: argparse.Namespace,
    spec: WorkloadSpec,
    rates: Sequence[float],
    plan: Any,
    progress: RunProgress,
) -> int:
    from pd.bench.endpoint import open_client
    from pd.bench.measure import compare, search, sweep

    url = server_url(args)
    salt = secrets.randbits(40) if args.salt is None else args.salt
    second_url = _second_url(args.compare) if args.compare else ""
    async with open_client(url, args.timeout_s) as http:
        bench = await _prepared(args, http, url, spec, salt, progress)
        if args.compare:
            async with open_client(second_url, args.timeout_s) as other:
                second = await _prepared(args, other, second_url, spec, salt, progress)
                # Both are sent what both can take, or it would be no comparison.
                longest = [each.spec.longest for each in (bench, second) if each.spec.longest]
                for each in (bench, second):
                    each.spec = dataclasses.replace(spec, longest=min(longest, default=None))
                pairs = await compare(bench, second, args.repeats or 2)
            first, other_runs = [a for a, _ in pairs], [b for _, b in pairs]
            _finish(args, [bench, second], [(url, first), (second_url, other_runs)], None)
        elif plan is not None:
            _finish(args, [bench], [(url, await search(bench, plan))], plan)
        elif rates:
            _finish(args, [bench], [(url, await sweep(bench, rates))], None)
        else:
            _finish(args, [bench], [(url, [await bench.run()])], None)
    return 0


async def _prepared(
    args: argparse.Namespace,
    http: Any,
    url: str,
    spec: WorkloadSpec,
    salt: int,
    progress: RunProgress,
) -> Bench:
    """The server looked at and warmed up."""
    from pd.bench.endpoint import probe
    from pd.bench.measure import Bench

    endpoint = await probe(
        http, url, model=args.model, api_key=args.api_key, vocabulary=args.vocab_size,
        prompts=args.prompts,
    )  # fmt: skip
    if endpoint.max_model_len is not None:
        most = min(spec.longest or endpoint.max_model_len, endpoint.max_model_len)
        spec = dataclasses.replace(spec, longest=most)
    bench = Bench(http, endpoint, spec, slo_of(args), progress, salt, args.warmup, args.ramp_s)
    await bench.warm_up()
    return bench


def _finish(
    args: argparse.Namespace,
    benches: Sequence[Bench],
    series: Sequence[tuple[str, Sequence[Measured]]],
    plan: Any,
) -> None:
    """Tables, notes and files."""
    from pd.bench import results
    from pd.cli import bench_output as output
    from pd.workload.recorded import write_log

    slo = slo_of(args)
    longest = benches[0].spec.longest
    runs = [each for _, some in series for each in some]
    rows = [(url, each.rate, each.summary) for url, some in series for each in some]
    if args.compare:
        pooled = [results.pooled(some, slo) for _, some in series]
        rows += [
            (f"{url}, all", some[0].rate, summary)
            for (url, some), summary in zip(series, pooled, strict=True)
        ]
    output.show(rows)
    notes = [_workload_note(runs[0])]
    if longest is not None:
        too_long, count = benches[0].spec.num_too_long(longest)
        if too_long:
            notes.append(
                f"left out: {too_long} of {count} requests, longer than the {longest} tokens that "
                "a request may have"
            )
    if args.compare:
        notes.append(_comparison(series, pooled))
    if plan is not None:
        notes.append(_answer(plan))
    for note in notes:
        print(note)
    for warning in output.warnings(runs):
        print(f"note: {warning}")
    goal = plan.goal if plan is not None else None
    if args.json is not None:
        data = {
            "endpoints": [results.endpoint_data(each.endpoint) for each in benches],
            "workload": results.workload_data(runs[0].workload),
            "options": _options(args),
            "slo": None if slo is None else dataclasses.asdict(slo),
            "runs": [results.run_data(each) for each in runs],
            "search": None if plan is None else results.search_data(plan),
            "compare": [results.summary_data(each) for each in pooled] if args.compare else None,
        }
        write_text(args.json, json.dumps(data, indent=1) + "\n")
    if args.report is not None:
        title = f"{benches[0].endpoint.model}: {runs[0].workload.name}"
        output.write_report(args.report, title, series, slo, goal, notes)
    if args.record is not None:
        write_log(args.record, runs[-1].workload, runs[-1].outcomes)


def _workload_note(measured: Measured) -> str:
    workload = measured.workload
    count = len(workload)
    return (
        f"workload {workload.name}: {count} requests a run, on average "
        f"{workload.num_prompt_tokens / count:.0f} prompt and "
        f"{workload.num_output_tokens / count:.0f} output tokens; times in ms"
    )


def _answer(plan: Any) -> str:
    best = plan.best
    if best is None:
        lowest = min(each.rate for each in plan.trials)
        return f"no rate holds: even at {lowest:.3g} req/s fewer than {plan.goal:.0%} are in time"
    bound = f"known to within {plan.tolerance:.0%}"
    if not plan.bracketed:
        bound = "and it may be higher still"
        if best.all_at_once:
            bound += ": all requests came nearly at once, send more of them (--requests)"
    return (
        f"highest rate with {plan.goal:.0%} in time: {best.rate:.3g} req/s "
        f"({best.attainment:.1%} there), {bound}"
    )


def _comparison(series: Sequence[tuple[str, Sequence[Measured]]], pooled: Sequence[Any]) -> str:
    """The second server's figures over the first's, of all runs together."""
    first, second = pooled
    ratios = [
        f"{name} x {b / a:.3f}"
        for name, a, b in (
            ("goodput", first.goodput, second.goodput),
            ("mean TTFT", first.ttft_s.mean, second.ttft_s.mean),
            ("mean TPOT", first.tpot_s.mean, second.tpot_s.mean),
        )
        if a > 0 and b == b
    ]
    return f"{series[1][0]} beside {series[0][0]}: {', '.join(ratios) or 'nothing to compare'}"


def _options(args: argparse.Namespace) -> dict[str, Any]:
    left_out = ("run", "api_key", "json", "record", "report")
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in left_out
    }


def _rates(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        rates = [float(each) for each in text.split(",")]
        if not all(0 < each < float("inf") for each in rates):
            raise ValueError
    except ValueError:
        raise ConfigError(f"--rates {text}: write rates above 0, such as 1,2,4") from None
    return rates


def _second_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--compare {text}: that is not a server's URL, such as {DEFAULT_URL}")
    return text
