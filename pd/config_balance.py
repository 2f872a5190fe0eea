"""The section of the configuration that says whether and how nodes change roles by themselves.

A part of `pd.config`, which is what others import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pd.policies.balance import BalanceOptions
from pd.schema import Section, option

_DEFAULTS = BalanceOptions()


@dataclass(frozen=True)
class BalanceConfig(Section):
    """Roles that follow the load, so that both targets of `slo` are met."""

    name: ClassVar[str] = "balance"

    balance: bool = option(
        False,
        "change the roles of nodes where the load needs it, to meet slo.ttft_ms and slo.tpot_ms "
        "(1000 and 100 where they are not set)",
    )
    balance_mixed: bool = option(
        _DEFAULTS.mixed,
        "whether nodes may become mixed ones, too: whichever roles serve most requests in time; "
        "with disaggregate: auto decode nodes compute prompts besides as they are",
    )
    balance_high: float = option(
        _DEFAULTS.high, "share of what its nodes can take from which a phase counts as pressed",
        minimum=0.1, maximum=2.0,
    )  # fmt: skip
    balance_window_s: float = option(
        _DEFAULTS.window_s, "seconds that what is measured is smoothed over", minimum=0.1
    )
    balance_patience_s: float = option(
        _DEFAULTS.patience_s, "seconds that a phase has to be pressed for a change", minimum=0.0
    )
    balance_cooldown_s: float = option(
        _DEFAULTS.cooldown_s, "seconds between one change and the next", minimum=0.0
    )
    balance_end_s: float = option(
        _DEFAULTS.end_s, "seconds that outputs of a node which becomes a prefill node have to end "
        "there, before they go on elsewhere", minimum=0.0,
    )  # fmt: skip
    min_prefill: int = option(1, "nodes that can always prefill, mixed ones included", minimum=1)
    min_decode: int = option(1, "nodes that can always decode, mixed ones included", minimum=1)
