"""What steps of several nodes on one host cost each other. Pure.

A step that runs few tokens reads all weights for them and waits for memory most of its time, and
cores share their way to memory. How far a step depends on it is its `memory_share`: the part of
its duration that reading the weights takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pd.cost.load import StepLoad
from pd.cost.model import CostModel
from pd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sharing:
    """A step of memory share m takes 1 + m * (beside + bus * others) times as long as alone, where
    others run whose memory shares sum up to `others`, and 1 / (1 - background) times as long again
    on the core that processes which are no nodes run on.

    `beside` is what any neighbour costs that part of a step, whatever it does, as it fills the
    cache they share; `bus` is what one that only reads memory costs. `background` is the part of
    one core's time that those processes take together, on a host with a core for each node and
    none for them. They keep to idle cores; when there is none left, to the one that was idle last.
    """

    beside: float = 0.0
    bus: float = 0.0
    background: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("beside", 100.0), ("bus", 100.0), ("background", 1.0)):
            if not 0.0 <= getattr(self, name) < most:
                raise ConfigError(
                    f"{name} must be at least 0 and below {most:g}, not {getattr(self, name)!r}"
                )

    def slowness(self, mine: float, others: Iterable[float], crowded: bool = False) -> float:
        """How many times as long a step takes beside those: their memory shares, 0 for a node
        that idles and counts as not there. `crowded` if processes that are no nodes are on its
        core, too."""
        running = [each for each in others if each > 0.0]
        if not running:
            return 1.0
        alone = 1.0 + mine * (self.beside + self.bus * sum(running))
        return alone / (1.0 - self.background) if crowded else alone

    @classmethod
    def load(cls, path: Path) -> Sharing:
        """From a JSON file with the two under "sharing". ConfigError where it has none."""
        try:
            fields = json.loads(path.read_text())["sharing"]
            background = float(fields.get("background", 0.0))
            return cls(float(fields["beside"]), float(fields["bus"]), background)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} has no 'sharing' with the numbers 'beside' and 'bus': it is not what "
                "scripts/measure_sharing.py writes"
            ) from None


def memory_share(cost: CostModel, load: StepLoad) -> float:
    """The part of a step's duration, from 0 to 1, that reading the weights takes: what a step of
    one token needs at least."""
    seconds = cost.step_s(load)
    return min(1.0, (cost.overhead_s + cost.linear(1)) / seconds) if seconds > 0 else 0.0
