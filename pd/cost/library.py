"""The cost models that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from pd.cost.model import CostModel
from pd.errors import ConfigError

_DATA = Path(__file__).parent / "data"


def names() -> list[str]:
    """What there is: model, hardware and, where there are several, GPUs or threads of a node."""
    return sorted(path.stem for path in _DATA.glob("*.json"))


def find(name: str | Path) -> CostModel:
    """The model of that name, or in that file. ConfigError says which names there are."""
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.is_file():
        return CostModel.load(path)
    known = names()
    if str(name) not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
        raise ConfigError(f"no cost model '{name}', and no file of that name{hint}")
    return CostModel.load(_DATA / f"{name}.json")
