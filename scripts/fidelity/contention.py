"""Two engines on one host, a core each: what a step takes while the other runs one, too.

Cores share the memory bus. A decode step reads all weights for a few tokens, so that one core alone
may keep the bus busy; two such steps at once then take longer than either alone.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from pd.cost.model import CostModel
from pd.cost.sharing import Sharing, memory_share
from pd.cost.sweep import Point

POINTS: Mapping[str, Point] = {
    "decode 1": Point(decodes=(128,)),
    "decode 4": Point(decodes=(256,) * 4),
    "decode 16": Point(decodes=(256,) * 16),
    "prefill 64": Point(chunks=((0, 64),)),
    "prefill 256": Point(chunks=((0, 256),)),
    "prefill 512": Point(chunks=((0, 512),)),
    "mixed 256 + 4": Point(chunks=((0, 256),), decodes=(256,) * 4),
}
_KV_BYTES = 1 << 30
_SETTLE_S = 0.3


def measure(model: str, rounds: int) -> dict[str, dict[str, float]]:
    """{what the other does: {step: median seconds}}, "" where the other idles."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed for two engines side by side")
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    try:
        for core in cores:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, model, core), daemon=True)
            process.start()
            ends.append(ours)
            processes.append(process)
        for end in ends:
            end.recv()
        subject, other = ends
        found = {}
        for beside in ("", *POINTS):
            other.send(("loop", beside))
            time.sleep(_SETTLE_S)
            subject.send(("measure", rounds))
            found[beside] = subject.recv()
            other.send(("stop", ""))
            other.recv()
        return found
    finally:
        for end in ends:
            with suppress(OSError):
                end.send(("end", ""))
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def memory_shares(cost: CostModel) -> dict[str, float]:
    """Of the steps measured, by name."""
    return {name: memory_share(cost, point.load) for name, point in POINTS.items()}


def fit(
    times: Mapping[str, Mapping[str, float]], shares: Mapping[str, float]
) -> tuple[Sharing, float]:
    """The `Sharing` of least squares, and its mean error over all pairs as a share of the time.
    `times` as `measure` has them."""
    # slowness - 1 = mine * beside + mine * other * bus: two unknowns, solved by hand.
    pairs = [
        (shares[step], shares[step] * shares[other], times[other][step] / times[""][step] - 1.0)
        for other in times
        if other
        for step in times[other]
    ]
    aa = sum(a * a for a, _, _ in pairs)
    ab = sum(a * b for a, b, _ in pairs)
    bb = sum(b * b for _, b, _ in pairs)
    ay = sum(a * y for a, _, y in pairs)
    by = sum(b * y for _, b, y in pairs)
    determinant = aa * bb - ab * ab
    beside, bus = (ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant
    if beside < 0.0:
        beside, bus = 0.0, by / bb
    elif bus < 0.0:
        beside, bus = ay / aa, 0.0
    sharing = Sharing(max(0.0, beside), max(0.0, bus))
    errors = [
        abs((1.0 + a * sharing.beside + b * sharing.bus) / (1.0 + y) - 1.0) for a, b, y in pairs
    ]
    return sharing, sum(errors) / len(errors)


def _serve(end: Connection, model: str, core: int) -> None:
    os.sched_setaffinity(0, [core])
    from pd.engine.engine import Engine
    from pd.engine.profiler import Profiler
    from pd_kernels.cpu_threads import set_num_threads

    set_num_threads(1)
    engine = Engine(
        model, device="cpu", block_size=16, kv_bytes=_KV_BYTES, max_num_batched_tokens=512,
        max_num_seqs=64,
    )  # fmt: skip
    engine.warmup()
    profiler = Profiler(engine, engine.spec.vocab_size)
    plans = {name: profiler.plan(point) for name, point in POINTS.items()}
    for plan in plans.values():
        engine.execute(plan)
    end.send("ready")
    rng = random.Random(0)
    while True:
        order, argument = end.recv()
        if order == "end":
            return
        if order == "loop":
            while not end.poll():
                if argument:
                    engine.execute(plans[argument])
                else:
                    time.sleep(0.01)
        elif order == "stop":
            end.send("stopped")
        else:
            end.send(_times(engine, plans, argument, rng))


def _times(engine: Any, plans: Mapping[str, Any], rounds: int, rng: random.Random) -> Any:
    times: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(rounds):
        for name in rng.sample(sorted(plans), len(plans)):
            # Of the CPU: what others of this machine take of the core is no cost of sharing.
            start = time.process_time()
            engine.execute(plans[name])
            times[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in times.items()}
