#!/usr/bin/env python3
"""What long prompts do to running streams: two pools against mixed nodes, on the same two cores.

    python scripts/bench_interference.py [--quick] [--chunks 32 128 512] [--repeats 3]

Eight streams decode all the time while a prompt of 1,024 tokens, never the same, arrives every
six seconds. Each setting serves this load in a cell of its own, first without the prompts, to
see what its streams do undisturbed:

    PD            1 prefill + 1 decode node, a core each; the prompts' KV is handed over
    mixed 2 x 1   two nodes that serve both phases, a core each
    mixed 1 x 2   one such node with both cores

A mixed node computes a chunk of a prompt in the same step as its streams' next tokens. Small
chunks make those steps short and the prompt slow, so mixed settings run at several chunk sizes
(`max_num_batched_tokens`); on a prefill node nothing has to wait for a chunk.

Figures, all seen by the client, from when it reads an event to when it reads the next:

    idle p50      time between two tokens of a stream (ITL) without prompts, median
    p50 p99 max   the same while prompts arrive, over all streams; p99 / idle p50 is the
                  interference: 1.0 means the streams did not notice
    worst         the longest such time between one prompt and the next, median over the prompts:
                  what a prompt does to running streams, which p99 misses if few steps are that
                  long (the time to a stream's second token is not looked at here)
    late          share of the streams' time that went by in gaps over 1.5 x idle p50
    TTFT          from a prompt's request to its first token, median and longest; `!n` says that
                  n prompts had no answer a minute after the last
    tokens/s      of the streams, while prompts arrive

Everything else that runs on the machine, this load included, shares the cores. The JSON has
the CPU seconds of every process in each phase; its `rest of the machine` should be near zero.
With `--repeats` the run whose p99 / idle is the median counts; `repeated` has that of each.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib.arguments import at_least_one
from benchlib.cells import node_pids, resolve, run_streams, running, say, use_cores
from benchlib.environment import environment
from benchlib.report import milliseconds, options_of, percentile, show_table, write_json

CHUNKS = (32, 64, 128, 256, 512, 1024)
CORES = 2
LATE = 1.5  # times idle p50
TICKS_MS = (20, 50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True)
class Setting:
    kind: str
    chunk: int
    options: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.kind}, chunk {self.chunk}"


PD, MIXED_2, MIXED_1 = "PD 1+1", "mixed 2 x 1", "mixed 1 x 2"


def settings(chunks: list[int], pd_chunk: int) -> list[Setting]:
    found = [Setting(PD, pd_chunk, {"prefill": 1, "decode": 1, "threads_per_node": 1})]
    for chunk in chunks:
        found.append(Setting(MIXED_2, chunk, {"mixed": 2, "threads_per_node": 1}))
        found.append(Setting(MIXED_1, chunk, {"mixed": 1, "threads_per_node": 2}))
    return found


def measure(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """The run in the middle of as many as are wanted, and what all of them had."""
    runs = [measure_once(setting, args) for _ in range(args.repeats)]
    runs.sort(key=lambda run: run["p99_over_idle_p50"])
    return {
        **runs[len(runs) // 2],
        "repeated": [run["p99_over_idle_p50"] for run in runs],
    }


def measure_once(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    config = resolve(
        model=args.model, dtype=args.dtype, max_num_batched_tokens=setting.chunk,
        pin_cpus=args.pin_cpus, **setting.options,
    )  # fmt: skip
    with running(config) as cluster:
        say(f"  {len(node_pids(cluster))} nodes are up; {args.streams} streams, {args.seconds:g} s")
        phases = run_streams(
            cluster, streams=args.streams, stream_tokens=args.stream_tokens, prompt=args.prompt,
            every_s=args.every, idle_s=args.idle_seconds, load_s=args.seconds,
        )  # fmt: skip
    return {"setting": setting.kind, "chunk": setting.chunk, **summary(phases)}


def summary(phases: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the phases `idle` and `load` of a cell; times in seconds."""
    idle, load = phases["idle"], phases["load"]
    idle_p50_s = percentile(idle["gaps_s"], 0.5)
    gaps_s, ttft_s = load["gaps_s"], load["prompt_ttft_s"]
    p99_s = percentile(gaps_s, 0.99)
    return {
        "idle_p50_s": idle_p50_s,
        "idle_p99_s": percentile(idle["gaps_s"], 0.99),
        "itl_p50_s": percentile(gaps_s, 0.5),
        "itl_p90_s": percentile(gaps_s, 0.9),
        "itl_p99_s": p99_s,
        "itl_max_s": max(gaps_s),
        "p99_over_idle_p50": p99_s / idle_p50_s,
        "worst_s": percentile(load["longest_s"], 0.5),
        "late": sum(gap for gap in gaps_s if gap > LATE * idle_p50_s) / sum(gaps_s),
        "tokens": len(gaps_s),
        "tokens_per_s": len(gaps_s) / load["seconds"],
        "ttft_p50_s": percentile(ttft_s, 0.5),
        "ttft_max_s": max(ttft_s, default=float("nan")),
        "prompts": len(ttft_s),
        "unanswered": load["unanswered"],
        "stream_ttft_p50_s": percentile(load["stream_ttft_s"], 0.5),
        "cpu_s": {name: phases[name]["cpu_s"] for name in ("idle", "load")},
        "seconds": {name: phases[name]["seconds"] for name in ("idle", "load")},
    }


def row(result: dict[str, Any]) -> list[str]:
    unanswered = f" !{result['unanswered']}" if result["unanswered"] else ""
    return [
        f"{result['setting']}, chunk {result['chunk']}",
        *(milliseconds(result[key]) for key in
          ("idle_p50_s", "itl_p50_s", "itl_p99_s", "worst_s", "itl_max_s")),
        f"{result['p99_over_idle_p50']:.2f}",
        f"{100 * result['late']:.1f} %",
        f"{result['ttft_p50_s']:.2f}",
        f"{result['ttft_max_s']:.2f}{unanswered}",
        f"{result['tokens_per_s']:.0f}",
    ]  # fmt: skip


def picture(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """ITL against TTFT, its p99 and the longest a prompt causes: down and left is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11.0, 4.8), layout="constrained", sharey=True)
    draw(panels[0], results, "itl_p99_s", "ITL of the streams, p99")
    draw(panels[1], results, "worst_s", "longest gap in a stream that a prompt causes, median")
    panels[0].set_ylabel("ms")
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"drawn in {path}", flush=True)


def draw(axes: Any, results: list[dict[str, Any]], key: str, title: str) -> None:
    for kind, style, colour in ((MIXED_2, "o-", "tab:orange"), (MIXED_1, "s-", "tab:blue")):
        mine = [each for each in results if each["setting"] == kind]
        if not mine:
            continue
        points = [(each["ttft_p50_s"], each[key] * 1e3) for each in mine]
        axes.plot(*zip(*points, strict=True), style, color=colour, label=f"{kind} cores, by chunk")
        for each, point in zip(mine, points, strict=True):
            axes.annotate(
                str(each["chunk"]), point, textcoords="offset points", xytext=(6, 5),
                fontsize=8, color=colour,
            )  # fmt: skip
    for each in results:
        if each["setting"] == PD:
            axes.plot(
                each["ttft_p50_s"], each[key] * 1e3, "*", markersize=16, color="tab:green",
                label="1 prefill + 1 decode, a core each",
            )  # fmt: skip
            limit_ms = LATE * each["idle_p50_s"] * 1e3
            axes.axhline(limit_ms, color="tab:green", linewidth=1, linestyle=":")
            axes.annotate(
                f"{LATE} x its idle ITL", (0.0, limit_ms), fontsize=8, color="tab:green",
                xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(4, 4),
            )  # fmt: skip
    axes.set_yscale("log", subs=[])
    axes.set_yticks(TICKS_MS, [f"{tick:,}" for tick in TICKS_MS])
    axes.set_ylim(TICKS_MS[0], max(TICKS_MS[-1], 1.2 * max(each[key] * 1e3 for each in results)))
    axes.set_xlim(left=0)
    axes.set_xlabel("TTFT of the prompts, median (s)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--chunks", type=int, nargs="*", default=list(CHUNKS), metavar="N",
        help="of the mixed nodes; none: 1 prefill + 1 decode only",
    )  # fmt: skip
    parser.add_argument("--pd-chunk", type=int, default=512, help="chunk of the prefill node")
    parser.add_argument(
        "--repeats", type=at_least_one, default=1, help="runs of each setting; the median"
    )
    parser.add_argument("--seconds", type=float, default=36.0, help="of load in each cell")
    parser.add_argument("--idle-seconds", type=float, default=12.0, help="without prompts")
    parser.add_argument("--every", type=float, default=6.0, help="seconds between two prompts")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--stream-tokens", type=int, default=512, help="tokens of a stream")
    parser.add_argument(
        "--pin-cpus", action=argparse.BooleanOptionalAction, default=True,
        help="cores of its own for each node, as the option of that name gives",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="chunks 128 and 512, half the time")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/interference.json"))
    parser.add_argument("--picture", type=Path, default=Path("benchmarks/interference.png"))
    args = parser.parse_args()
    if args.quick:
        args.chunks, args.seconds, args.idle_seconds = [128, 512], 25.0, 5.0

    use_cores(CORES)
    facts = environment()
    todo, results = settings(args.chunks, args.pd_chunk), []
    for number, setting in enumerate(todo, 1):
        say(f"{number} of {len(todo)}: {setting.name}")
        results.append(measure(setting, args))
        say("  ITL p99 {itl_p99_s:.3f} s, TTFT {ttft_p50_s:.2f} s".format(**results[-1]))
    title = (
        f"{args.streams} streams and a prompt of {args.prompt} tokens every {args.every:g} s "
        f"on {CORES} cores, {Path(args.model).name}"
    )
    headings = ["", "idle p50", "ITL p50", "p99", "worst", "max", "p99 / idle", "late", "TTFT p50",
                "max", "tokens/s"]  # fmt: skip
    show_table(f"{title} (ITL in ms, TTFT in s)", headings, map(row, results))
    options = options_of(args, "picture")
    write_json(args.json, {"environment": facts, "options": options, "results": results})
    picture(results, args.picture, title)


if __name__ == "__main__":
    main()
