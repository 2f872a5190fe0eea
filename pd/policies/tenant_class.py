"""What a tenant is promised and allowed: latency targets, priority, weight and rate limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from pd.errors import ConfigError
from pd.types import SLO

DEFAULT_CLASS = "default"
_WHOLE = ("priority", "min_priority")  # these may also be zero or below
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TenantClass:
    """`priority` is that of requests which name none, `min_priority` the lowest number, which is
    the most urgent, that they may name: None for any. `weight` is the tenants' share of a node
    against other tenants', `requests_per_s` and `tokens_per_min` bound each tenant by itself."""

    name: str = DEFAULT_CLASS
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    priority: int = 0
    min_priority: int | None = None
    weight: float = 1.0
    requests_per_s: float | None = None
    tokens_per_min: float | None = None

    @classmethod
    def parse(cls, text: str) -> TenantClass:
        """A class written NAME=KEY:VALUE/KEY:VALUE; ConfigError says what is wrong with it."""
        name, _, rest = text.partition("=")
        if not name or not rest:
            raise ConfigError(f"'{text}': write NAME=KEY:VALUE/KEY:VALUE")
        known = [each.name for each in fields(cls) if each.name != "name"]
        values: dict[str, float | int] = {}
        for item in rest.split("/"):
            key, _, word = item.partition(":")
            if key not in known:
                raise ConfigError(f"class '{name}': '{key}' is not one of {', '.join(known)}")
            if key in values:
                raise ConfigError(f"class '{name}': '{key}' is given twice")
            values[key] = _number(name, key, word)
        if "priority" in values:
            values.setdefault("min_priority", values["priority"])
        made = cls(name, **values)  # type: ignore[arg-type]
        if made.min_priority is not None and made.priority < made.min_priority:
            raise ConfigError(
                f"class '{name}': priority {made.priority} is more urgent than min_priority "
                f"{made.min_priority} allows"
            )
        return made

    def targets(self, asked: SLO, deployment: SLO) -> SLO:
        """A request's own targets, where it has none the class's, then the deployment's."""

        def first(*values: float | None) -> float | None:
            return next((value for value in values if value is not None), None)

        mine = SLO(_seconds(self.ttft_ms), _seconds(self.tpot_ms))
        return SLO(
            first(asked.ttft_s, mine.ttft_s, deployment.ttft_s),
            first(asked.tpot_s, mine.tpot_s, deployment.tpot_s),
        )


@dataclass(frozen=True, slots=True)
class TenantClasses:
    """The class of every tenant, and the targets of the deployment."""

    deployment: SLO = field(default_factory=SLO)
    classes: Mapping[str, TenantClass] = field(default_factory=dict)
    tenants: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        ttft_ms: float | None,
        tpot_ms: float | None,
        classes: Iterable[str],
        tenants: Iterable[str],
    ) -> TenantClasses:
        """From the words of a configuration: NAME=KEY:VALUE/..., and TENANT=CLASS."""
        made: dict[str, TenantClass] = {}
        for each in map(TenantClass.parse, classes):
            if each.name in made:
                raise ConfigError(f"class '{each.name}' is given twice")
            made[each.name] = each
        class_of: dict[str, str] = {}
        for word in tenants:
            tenant, _, name = word.partition("=")
            if not tenant or not name:
                raise ConfigError(f"'{word}': write TENANT=CLASS")
            if tenant in class_of:
                raise ConfigError(f"tenant '{tenant}' is given twice")
            if name not in made:
                known = ", ".join(sorted(made)) or "none at all"
                raise ConfigError(f"tenant '{tenant}' is of class '{name}'; there is {known}")
            class_of[tenant] = name
        return cls(SLO(_seconds(ttft_ms), _seconds(tpot_ms)), made, class_of)

    def of(self, tenant: str) -> TenantClass:
        """A tenant that is not named has the class `default`, which is unbounded unless given."""
        name = self.tenants.get(tenant, DEFAULT_CLASS)
        return self.classes.get(name, _UNBOUNDED)


_UNBOUNDED = TenantClass()


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _number(name: str, key: str, word: str) -> float | int:
    kind = int if key in _WHOLE else float
    try:
        value = kind(word)
    except ValueError:
        noun = "whole number" if kind is int else "number"
        raise ConfigError(f"class '{name}': {key} must be a {noun}, not '{word}'") from None
    low = -_LARGEST if kind is int else 1e-6
    if not low <= value <= _LARGEST:
        raise ConfigError(f"class '{name}': {key} must be from {low:g} to {_LARGEST}, not {word}")
    return value
