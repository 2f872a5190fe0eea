"""What a cell's processes take of the cores beside the steps, from benchmarks/token_path.json.

Each figure there is CPU time for a number of streams that get a token a step. It is taken as so
much a step and so much a token: a line through the figures of 1 and of 32 streams.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pd.cost.model import CostModel

_FEW, _MANY = 1, 32
_FAIR = 0.5
_CLIENT = "-m benchlib.streams"


@dataclass(frozen=True, slots=True)
class PerStep:
    """Seconds of CPU for each step, and for each token that one draws."""

    step_s: float
    token_s: float

    @classmethod
    def through(cls, few_s: float, many_s: float) -> PerStep:
        """Of the seconds that a step of 1 and one of 32 sequences take."""
        token_s = max(0.0, (many_s - few_s) / (_MANY - _FEW))
        return cls(max(0.0, few_s - token_s * _FEW), token_s)


@dataclass(frozen=True, slots=True)
class Overheads:
    """`loop` is a node's own, between its steps and on its core; `front` is that of gateway and
    client; `idle` the cores that an idle cell takes."""

    loop: PerStep
    front: PerStep
    idle: float

    @classmethod
    def load(cls, path: Path) -> Overheads:
        report = json.loads(path.read_text())
        by_streams = {each["streams"]: each for each in report["results"]}
        few, many = by_streams[_FEW], by_streams[_MANY]
        return cls(
            PerStep.through(few["node_us"] * 1e-6, _MANY * many["node_us"] * 1e-6),
            PerStep.through(_front_s(few), _MANY * _front_s(many)),
            sum(
                seconds for name, seconds in report["idle"].items() if name != "rest of the machine"
            ),
        )

    def on(self, cost: CostModel) -> CostModel:
        """The cost model of a node whose loop shares the core with its steps."""
        attention = replace(
            cost.attention, decode_seq_s=cost.attention.decode_seq_s + self.loop.token_s
        )
        return replace(cost, overhead_s=cost.overhead_s + self.loop.step_s, attention=attention)

    def background(self, steps_per_s: float, tokens_per_s: float) -> float:
        """The part of one core's time that all but the nodes take, at this rate of both. At most
        half: what a step leaves them."""
        front = self.front.step_s * steps_per_s + self.front.token_s * tokens_per_s
        return min(_FAIR, self.idle + front)


def _front_s(result: Mapping[str, Any]) -> float:
    """CPU of gateway and client for a token."""
    return float(result["gateway_us"]) * 1e-6 + result["cpu_s"][_CLIENT] / result["tokens"]
