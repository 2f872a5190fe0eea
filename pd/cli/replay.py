"""`pd replay`: what a coordinator decided, decided again from its recorded events."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from pd.errors import ConfigError
from pd.messages import Admitted, Interrupted, Rejected, SetRole, UsePool
from pd.outbox import Decided, Effect, Kill, Send

# The messages that carry decisions; the others follow from these, or carry state.
_DECISIONS = (Admitted, Rejected, Interrupted, SetRole, UsePool)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="decide again on a recording of a coordinator",
        description="Feed the events of a recording (cluster.record) to a fresh coordinator, show "
        "what it decides, and check that this is what was decided then.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object a decision")
    parser.add_argument("--quiet", action="store_true", help="only the check and the counts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.recorder import replay

    counts: Counter[str] = Counter()
    num_effects = 0
    begun: float | None = None
    try:
        for each in replay(args.file):
            num_effects += 1
            begun = each.now if begun is None else begun
            decision = decision_of(each.effect)
            if decision is None:
                continue
            counts[decision["decision"]] += 1
            if not args.quiet:
                _show({"at_s": round(each.now - begun, 6), **decision}, as_json=args.json)
    except OSError as error:
        raise ConfigError(f"cannot read {args.file}: {error.strerror}") from None
    if not args.json:
        made = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"
        print(f"decisions: {made}; all {num_effects:,} effects as they were recorded")
    return 0


def decision_of(effect: Effect) -> dict[str, Any] | None:
    """What is worth a line, as plain data; None for what merely follows from decisions."""
    if isinstance(effect, Kill):
        return {"decision": "kill", "id": effect.id, "reason": effect.reason}
    if isinstance(effect, Decided):
        numbers = dict(effect.numbers)
        return {"decision": effect.kind, "what": effect.what, "reason": effect.reason, **numbers}
    if not isinstance(effect, Send) or not isinstance(effect.message, _DECISIONS):
        return None
    message = effect.message
    fields = {name: getattr(message, name) for name in message.__slots__}
    return {"decision": type(message).__name__.lower(), "to": effect.to, **fields}


def _show(decision: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(decision))
        return
    at_s, name = decision.pop("at_s"), decision.pop("decision")
    rest = " ".join(f"{key}={value}" for key, value in decision.items())
    print(f"{at_s:12.6f}  {name:<11} {rest}")
