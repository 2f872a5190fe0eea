"""Rotary position embedding parameters as Hugging Face configs spell them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pd.errors import ModelError, UnsupportedModelError

RopeKind = Literal["default", "linear", "llama3", "yarn"]
SUPPORTED_ROPE: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn into angles.

    `factor` stretches the context (all kinds but "default"). `original_max` is the context
    length before stretching ("llama3", "yarn"). `attention_factor` multiplies cos and sin;
    it differs from 1 only for "yarn".
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RopeSpec:
        """Read `rope_scaling` + `rope_theta`, or the newer `rope_parameters`.

        Raises UnsupportedModelError for a kind that is not in SUPPORTED_ROPE and ModelError
        for missing or impossible values.
        """
        section = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(section, Mapping):
            raise ModelError(f"config.json: rope parameters must be an object, not {section!r}")
        if any(isinstance(value, Mapping) for value in section.values()):
            raise UnsupportedModelError(
                "config.json: rope parameters that differ between layer types are not supported"
            )
        kind = section.get("rope_type", section.get("type", "default"))
        if kind not in SUPPORTED_ROPE:
            raise UnsupportedModelError(
                f"config.json: rope type '{kind}' is not supported; "
                f"supported are {', '.join(SUPPORTED_ROPE)}"
            )
        partial = section.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise UnsupportedModelError(
                f"config.json: partial_rotary_factor {partial} is not supported, only 1"
            )
        theta = _number(section, "rope_theta", config.get("rope_theta") or 10000.0)
        if kind == "default":
            return cls(theta=theta)
        longest = config["max_position_embeddings"]
        original = int(
            config.get("original_max_position_embeddings")
            or section.get("original_max_position_embeddings")
            or longest
        )
        # DeepSeek-style configs leave the factor to the ratio of the two lengths.
        factor = _number(section, "factor", longest / original if kind == "yarn" else None)
        if kind == "linear":
            return cls(theta, kind, factor)
        if kind == "llama3":
            low, high = (
                _number(section, "low_freq_factor"),
                _number(section, "high_freq_factor"),
            )
            if high <= low:
                raise ModelError(
                    f"config.json: rope high_freq_factor {high} must exceed low_freq_factor {low}"
                )
            return cls(
                theta,
                kind,
                factor,
                original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
        return cls(
            theta,
            kind,
            factor,
            original,
            beta_fast=_number(section, "beta_fast", 32.0),
            beta_slow=_number(section, "beta_slow", 1.0),
            truncate=bool(section.get("truncate", True)),
            attention_factor=_yarn_attention_factor(section, factor),
        )


def _yarn_attention_factor(section: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature (arXiv 2309.00071, eq. 22), as transformers infers it."""

    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    given = section.get("attention_factor")
    if given is not None:
        return float(given)
    numerator, denominator = section.get("mscale"), section.get("mscale_all_dim")
    if numerator and denominator:
        return temperature(numerator) / temperature(denominator)
    return temperature(1.0)


def _number(section: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = section.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ModelError(
            f"config.json: rope parameter '{name}' must be a positive number, not {value!r}"
        )
    return float(value)
