"""Configuration files in and out, and the model that a configuration names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pd.config import OPTIONS, SECTIONS, Config
from pd.errors import ConfigError, ModelError
from pd.schema import options_of


def load_config(path: str | None, flags: Mapping[str, Any]) -> Config:
    """The configuration of a YAML file with `flags` on top; ConfigError names the file."""
    if path is None:
        return Config.from_dict(None, **flags)
    sections = _read_yaml(Path(path))
    try:
        return Config.from_dict(sections, **flags)
    except ConfigError as error:
        where = f"{path} with the flags given" if flags else path
        raise ConfigError(f"{where}: {error}") from None


def dump_config(config: Config) -> str:
    """A YAML file that `load_config` reads back as the same configuration."""
    import yaml

    lines: list[str] = []
    values = config.to_dict()
    for section in SECTIONS:
        lines += ["", f"{section.name}:"]
        for option in options_of(section):
            value = values[section.name][option.key]
            # Left as they are, some line separators would be read back as other ones.
            readable = str(value).isprintable()
            text = yaml.safe_dump({option.key: value}, allow_unicode=readable, width=1 << 20)
            lines.append(f"  # {option.help}")
            lines += [f"  {line}" for line in text.splitlines()]
    return "\n".join(lines[1:]) + "\n"


def resolve_model(config: Config, progress: Callable[[str], None]) -> Config:
    """The same configuration with the model's absolute directory in place of its name.

    A known name is downloaded first if it must be. The name that clients use stays what the
    user wrote. Raises ModelError if there is no such model.
    """
    from pd.engine.gguf_model import MODELS, get_model

    name = config.model.model
    directory = Path(name).expanduser()
    if name in MODELS and not directory.is_dir():
        directory = get_model(name, progress=progress)
        served = name
    else:
        check_model_dir(directory, sorted(MODELS))
        served = directory.resolve().name
    model = dataclasses.replace(config.model, model=str(directory.resolve()))
    gateway = config.gateway
    if gateway.served_model_name is None:
        gateway = dataclasses.replace(gateway, served_model_name=served)
    return dataclasses.replace(config, model=model, gateway=gateway)


def check_model_dir(directory: Path, known: list[str]) -> None:
    """Raises ModelError unless `directory` looks like a Hugging Face model."""
    if not directory.is_dir():
        raise ModelError(
            f"no model '{directory}': neither a directory nor a known name "
            f"({', '.join(known)}); see 'pd model list'"
        )
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} is not a Hugging Face model: it has no config.json")


def with_api_keys_from_environment(config: Config) -> Config:
    """PD_API_KEY and PD_API_KEYS (NAME=KEY,...) where no such keys are configured: a flag is seen
    by everyone who lists processes."""
    gateway = config.gateway
    one, several = os.environ.get("PD_API_KEY"), os.environ.get("PD_API_KEYS")
    if one and gateway.api_key is None:
        gateway = dataclasses.replace(gateway, api_key=one)
    if several and not gateway.api_keys:
        gateway = dataclasses.replace(gateway, api_keys=OPTIONS["api_keys"].parse(several))
    return dataclasses.replace(config, gateway=gateway)


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _refuse_repeated_keys(node, path)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def _refuse_repeated_keys(node: Any, path: Path) -> None:
    """YAML keeps the last of two equal keys without a word, which is never what was meant."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{path}, line {line}: key '{key.value}' is given twice")
        seen.add(key.value)
        _refuse_repeated_keys(value, path)
