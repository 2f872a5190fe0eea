"""Strict configuration sections: typed options with ranges, checked whoever builds them.

A section is a frozen dataclass derived from `Section`, each field made with `option()`. From
the same description come the checks of a YAML file, the command line's flags and their help.
Values are bool, int, float, str, one of a few words (`Literal`), a tuple of such words or any, or
`X | None`. A number that may be None is chosen at start-up, and None is written `auto`; a
string that may be None is simply not set.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Union

from pd.errors import ConfigError

AUTO = "auto"
_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Option:
    """One key of the configuration: what it is called and which values it takes."""

    section: str
    key: str
    kind: type  # bool, int, float or str
    default: Any
    help: str
    nullable: bool = False
    choices: tuple[str, ...] = ()
    many: bool = False  # an ordered tuple of `choices` without repeats
    minimum: float | None = None
    maximum: float | None = None

    @property
    def path(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    def allowed(self) -> str:
        """What may be written here, for an error or a help text."""
        if self.many and not self.choices:
            return "a list of words, or of NAME=VALUE as a mapping"
        if self.many:
            return "a list of " + ", ".join(self.choices)
        if self.choices:
            return "one of " + ", ".join(self.choices)
        text = _NOUNS[self.kind]
        if self.minimum is not None and self.maximum is not None:
            text += f" from {self.minimum:g} to {self.maximum:g}"
        elif self.minimum is not None:
            text += f" of at least {self.minimum:g}"
        if self.nullable:
            text += ", or nothing" if self.kind is str else f", or {AUTO}"
        return text

    def written(self, value: object) -> str:
        """A value as a user would write it."""
        if value is None:
            return "nothing" if self.kind is str else AUTO
        if isinstance(value, tuple):
            return ",".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def check(self, value: object) -> Any:
        """The value to keep (lists become tuples, `auto` None); ConfigError if it is not one."""
        if self.nullable and value is None:
            return None
        if self.nullable and value == ("" if self.kind is str else AUTO):
            return None
        if self.many:
            return self._check_many(value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise self._error(value)
        if self.choices and value not in self.choices:
            raise self._error(value, _nearest(str(value), self.choices))
        if self.kind in (int, float):
            self._check_range(value)
        return value

    def parse(self, text: str) -> Any:
        """The value of a command-line flag; ConfigError if the text is not one."""
        if self.many:
            words = text.split(",") if text else []
            return self.check([word.strip() for word in words])
        if self.kind in (int, float) and not (self.nullable and text == AUTO):
            try:
                return self.check(self.kind(text))
            except ValueError:
                raise self._error(text) from None
        return self.check(text)

    def _check_many(self, value: object) -> tuple[str, ...]:
        if not self.choices:
            return self._check_words(value)
        if not isinstance(value, (list, tuple)) or not value:
            raise self._error(value)
        for item in value:
            if item not in self.choices:
                raise self._error(value, _nearest(str(item), self.choices))
        if len(set(value)) != len(value):
            raise ConfigError(f"{self.path} = {list(value)!r} repeats a name; give each once")
        return tuple(value)

    def _check_words(self, value: object) -> tuple[str, ...]:
        """A flag has them separated by commas."""
        if isinstance(value, Mapping):
            value = [_word(name, each) for name, each in value.items()]
        if not isinstance(value, (list, tuple)):
            raise self._error(value)
        for number, word in enumerate(value, 1):
            if type(word) is not str or not word or "," in word or word != word.strip():
                raise ConfigError(
                    f"{self.path}, entry {number}: must be a string that is not empty, without "
                    "commas and without spaces around it"
                )
        return tuple(value)

    def _check_range(self, value: Any) -> None:
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not (math.isfinite(value) and low <= value <= high):
            raise self._error(value)

    def _error(self, value: object, near: str = "") -> ConfigError:
        return ConfigError(f"{self.path} must be {self.allowed()}, not {value!r}{near}")


def option(
    default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None
) -> Any:
    """A field of a section: its default, what it does, and the range of a number."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the configuration's sections; `name` is the section's key in the YAML file."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            object.__setattr__(self, each.key, each.check(getattr(self, each.key)))
        self.check()

    def check(self) -> None:
        """Rules that involve several options of the section; raises ConfigError."""


_OPTIONS_OF: dict[type, tuple[Option, ...]] = {}


def options_of(section: type[Section]) -> tuple[Option, ...]:
    """The options of a section, in the order of its fields."""
    if section not in _OPTIONS_OF:
        hints = typing.get_type_hints(section)
        fields = dataclasses.fields(section)  # type: ignore[arg-type]
        _OPTIONS_OF[section] = tuple(
            _option_of(section.name, each, hints[each.name]) for each in fields
        )
    return _OPTIONS_OF[section]


def _option_of(section: str, field: dataclasses.Field[Any], hint: Any) -> Option:
    nullable = many = False
    choices: tuple[str, ...] = ()
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        nullable = True
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
        many = True
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        hint = str
    return Option(
        section, field.name, hint, field.default, nullable=nullable, choices=choices, many=many,
        **field.metadata,
    )  # fmt: skip


def check_keys(given: Iterable[object], known: Iterable[str], where: str, hint: str = "") -> None:
    """ConfigError for the first key of `given` that is not `known`, with the nearest name."""
    names = tuple(known)
    for key in given:
        if key not in names:
            near = hint or _nearest(str(key), names)
            raise ConfigError(
                f"unknown key '{key}' in {where}{near or '; known keys: ' + ', '.join(names)}"
            )


def as_mapping(value: object, where: str) -> Mapping[str, Any]:
    """`value` as a mapping of keys; an empty section of a YAML file (None) is one too."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys to values, not {value!r}")
    return value


def _word(name: object, value: object) -> object:
    """An entry of a mapping as one word; a mapping in it becomes KEY:VALUE/KEY:VALUE."""
    if isinstance(value, Mapping):
        value = "/".join(f"{key}:{each}" for key, each in value.items())
    return f"{name}={value}" if type(value) is str else value


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
