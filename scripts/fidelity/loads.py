"""Ten workloads that ask different things of a cell, at rates told as shares of its capacity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchlib.traces import find_trace

from pd.cost.load import StepLoad
from pd.cost.model import CostModel
from pd.workload.arrival import Workload
from pd.workload.lengths import Constant, LogNormal, Uniform
from pd.workload.spec import WorkloadSpec
from pd.workload.synthetic import SharedPrefixes, Turns

CHUNK = 512  # tokens a step at most, as nodes have it on a CPU
LONGEST = 1900
_MOST_SEQS = 64


@dataclass(frozen=True)
class Load:
    """`below` tells whether the fidelity targets hold for it: it does not saturate the cell. One
    that does is sent at a share of what that very cell can serve, the others at the same rate to
    all: a share of what a prefill and a decode node can."""

    name: str
    share: float  # of the capacity
    spec: WorkloadSpec
    below: bool = True
    computed: float | None = None  # of a prompt's tokens, where others are in a cache

    def rate(self, cost: CostModel, prompt: float, output: float, mixed: int = 0) -> float:
        of = mixed if not self.below else 0
        computed = round(prompt * (self.computed or 1.0))
        return self.share * capacity(cost, computed, round(output), of)

    def make(self, cost: CostModel, duration_s: float, mixed: int = 0) -> Workload:
        """The workload at its rate for a cell of so many mixed nodes, or else of a prefill and a
        decode node: `duration_s` from its start to its last arrival, about."""
        drawn = replace(self.spec, rate=self.spec.rate or 10.0, num_requests=200).make()
        rate = self.rate(
            cost, drawn.num_prompt_tokens / len(drawn), drawn.num_output_tokens / len(drawn),
            mixed,
        )  # fmt: skip
        number = max(8, round(rate * duration_s))
        spec = replace(self.spec, rate=rate, num_requests=number)
        workload = spec.make()
        return Workload(self.name, workload.arrivals, workload.block_tokens)


def capacity(cost: CostModel, num_prompt: int, num_output: int, mixed: int = 0) -> float:
    """Requests a second of one prefill and one decode node, or of so many mixed ones, none of
    which waits for another nor shares anything with it: an upper bound, which makes shares of it
    comparable."""
    prefill = 1.0 / cost.prefill_s(num_prompt, chunk=CHUNK)
    context = num_prompt + num_output // 2
    decode = max(
        seqs / cost.step_s(StepLoad.decode(seqs, seqs * context))
        for seqs in range(1, _MOST_SEQS + 1)
    )
    if mixed:
        return mixed / (1.0 / prefill + num_output / decode)
    return min(prefill, decode / num_output)


def loads(traces: Path, seed: int = 7) -> list[Load]:
    """All ten. The last is the conversation trace, scaled down, where `traces` has it."""
    chat = WorkloadSpec(
        prompts=LogNormal(200, 0.5, most=800),
        outputs=LogNormal(48, 0.5, most=160),
        longest=LONGEST, seed=seed,
    )  # fmt: skip
    few, many = LogNormal(48, 0.4, most=128), LogNormal(150, 0.3, most=320)
    talk = Turns(Uniform(3, 5), think_s=2.0, per_token_s=0.03)
    heads = SharedPrefixes(4, 256)
    made: list[Load] = [
        Load("steady, 30 %", 0.3, chat),
        Load("steady, 60 %", 0.6, replace(chat, seed=seed + 1)),
        Load("near saturation, prompts", 0.95, replace(chat, seed=seed + 2), below=False),
        Load("near saturation, outputs", 0.9, replace(chat, prompts=few, outputs=many), False),
        Load("bursty, CV 3", 0.4, replace(chat, process="gamma", cv=3.0, seed=seed + 3)),
        Load("long prompts", 0.6, replace(chat, prompts=LogNormal(900, 0.25, most=1500),
                                          outputs=Constant(32))),
        Load("short prompts, long outputs", 0.45, replace(chat, prompts=few, outputs=many)),
        Load("shared prefixes", 0.5, replace(chat, prompts=LogNormal(80, 0.5, most=400),
                                             shared=heads), computed=0.35),
        Load("sessions", 0.5, replace(chat, prompts=LogNormal(100, 0.5, most=300),
                                      turns=talk), computed=0.6),
    ]  # fmt: skip
    return [*made, Load("conversations", 0.45, _conversations(traces, chat))]


def _conversations(traces: Path, stand_in: WorkloadSpec) -> WorkloadSpec:
    """Mooncake's requests with a 64th of the prompt and an eighth of the output, or made-up ones
    of such lengths where the trace is not there."""
    try:
        file = find_trace(traces, "conversation")
    except FileNotFoundError:
        return replace(stand_in, prompts=LogNormal(190, 1.0, most=1500))
    return WorkloadSpec(file=file, scale_length=1 / 64, scale_output=1 / 8, longest=LONGEST)


def chosen(names: list[str] | None, all_loads: list[Load]) -> list[Load]:
    """Those whose names begin as one of `names`, or all. SystemExit for a name that none has."""
    if names is None:
        return all_loads
    unknown = [name for name in names if not any(each.name.startswith(name) for each in all_loads)]
    if unknown:
        known = ", ".join(each.name for each in all_loads)
        raise SystemExit(f"no workload begins with {', '.join(unknown)}; there are: {known}")
    wanted: Callable[[Load], bool] = lambda each: any(map(each.name.startswith, names))  # noqa: E731
    return [each for each in all_loads if wanted(each)]
