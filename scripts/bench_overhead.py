#!/usr/bin/env python3
"""CPU time that metrics, traces and logs add to a token at the gateway.

    python scripts/bench_overhead.py [--tokens 64 256] [--rounds 8]

The gateway of bench_front.py, fed with scripted tokens, three times side by side; rounds go in
turn, so that what else happens on the machine meets all alike. Requests are short: what is done
once for each is then at its worst for every token.

    off       nothing is counted or remembered: those calls do nothing, which no option can have
    default   metrics, the journal behind the live page, text logs; nobody looks
    all       spans of every request into a file, JSON logs, every request late and so eligible for
              the slow-request log, /metrics scraped every second and the live page open in a tab

Nodes are not here, because nothing is done there: spans are made of what the gateway knows anyway.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import tokenizers
from bench_front import TEXT, cell_main, gateway_main, measure, write_model
from benchlib.environment import environment
from benchlib.report import options_of, show_table, write_json

from pd import logs
from pd.config import ObserveConfig
from pd.gateway import journal, metrics
from pd.gateway.tracing import TraceOptions

VARIANTS = ("off", "default", "all")
VIEWS = ("/v1/status", "/v1/history", "/v1/requests/recent?limit=60", "/v1/decisions?limit=60")
STREAMS = 32
STEP_S = 0.006
LATE = {"slo": {"ttft_ms": 0.001, "tpot_ms": 0.001}}


def gateway(pipe: Connection, model_dir: str, coordinator: str, variant: str, folder: str) -> None:
    """A gateway that is watched as the variant says."""
    trace = None
    # Each writes its log into a file of its own, as a process of a cell does.
    with (Path(folder) / f"{variant}.log").open("w") as out:
        logs.start(
            "gateway-0", ObserveConfig(log_format="json" if variant == "all" else "text"), out
        )
        if variant == "off":
            _blind()
        elif variant == "all":
            trace = TraceOptions(file=f"{folder}/spans.jsonl")
        gateway_main(pipe, model_dir, coordinator, trace)


def _blind() -> None:
    def nothing(*_: Any) -> None:
        pass

    for owner, names in (
        (metrics.Histogram, ("observe",)),
        (metrics.GatewayMetrics, ("first_token", "started")),
        (journal.Journal, ("ended", "status", "tick")),
    ):
        for name in names:
            setattr(owner, name, nothing)


@contextlib.contextmanager
def looked_at(port: int) -> Iterator[None]:
    """A scraper and an open page."""
    over = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            turn = 0
            while not over.wait(1.0):
                client.get("/metrics").raise_for_status()
                if turn % 2 == 0:
                    for view in VIEWS:
                        client.get(view).raise_for_status()
                turn += 1

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Front:
    """One variant: its cell, its gateway and what its rounds took."""

    def __init__(self, variant: str, model_dir: str, script: list[int], folder: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.variant = variant
        self.cell, cell_end = spawn.Pipe()
        self.gateway, gateway_end = spawn.Pipe()
        self._processes = [spawn.Process(target=cell_main, args=(cell_end, script))]
        self._processes[0].start()
        endpoint = self.cell.recv()
        args = (gateway_end, model_dir, endpoint, variant, folder)
        self._processes.append(spawn.Process(target=gateway, args=args))
        self._processes[1].start()
        self.port: int = self.gateway.recv()

    def round(self, tokens: int) -> float:
        """Microseconds of the gateway's CPU a token."""
        more = LATE if self.variant == "all" else {}
        run = measure(self.cell, self.gateway, self.port, STREAMS, tokens, STEP_S, **more)
        return float(run["gateway_cpu_us_per_token"])

    def close(self) -> None:
        for pipe in (self.cell, self.gateway):
            pipe.send(None)
        for process in self._processes:
            process.join(20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="of a request")
    parser.add_argument("--rounds", type=int, default=8, help="of each variant and length")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/overhead.json"))
    args = parser.parse_args()
    facts, started_s = environment(), time.monotonic()
    results = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as open_:
        model_dir = str(write_model(Path(folder)))
        script = tokenizers.Tokenizer.from_file(f"{model_dir}/tokenizer.json").encode(TEXT).ids
        fronts = []
        for variant in VARIANTS:
            fronts.append(Front(variant, model_dir, script, folder))
            open_.callback(fronts[-1].close)
        open_.enter_context(looked_at(fronts[-1].port))
        for tokens in args.tokens:
            rounds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for number in range(args.rounds + 1):
                for front in fronts:
                    taken = front.round(tokens)
                    if number:  # the first warms up
                        rounds[front.variant].append(taken)
            off = statistics.median(rounds["off"])
            for variant, values in rounds.items():
                median = statistics.median(values)
                results.append(
                    {
                        "tokens_per_request": tokens, "variant": variant, "us_per_token": median,
                        "added": median / off - 1, "rounds": values,
                    }
                )  # fmt: skip
    rows = [
        [str(row["tokens_per_request"]), row["variant"], f"{row['us_per_token']:.1f}",
         f"{row['added']:+.1%}"]
        for row in results
    ]  # fmt: skip
    show_table("CPU of the gateway", ["tokens", "variant", "us a token", "added"], rows)
    report = {
        "environment": facts, "options": options_of(args), "streams": STREAMS, "step_s": STEP_S,
        "took_s": time.monotonic() - started_s, "results": results,
    }  # fmt: skip
    write_json(args.json, report)


if __name__ == "__main__":
    main()
