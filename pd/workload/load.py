"""Any workload file, by what is in it."""

from __future__ import annotations

from pathlib import Path

from pd.errors import WorkloadError
from pd.workload import azure, servegen
from pd.workload.arrival import Workload
from pd.workload.azure import load_azure
from pd.workload.mooncake import load_mooncake
from pd.workload.recorded import MARK, load_log
from pd.workload.rows import first_line
from pd.workload.servegen import load_servegen


def load_workload(path: Path | str, *, spread: bool = True, seed: int = 0) -> Workload:
    """A Mooncake trace, an Azure trace, ServeGen rows or a log of ours, plain or gzip; the first
    line tells which. `spread` and `seed` are `load_mooncake`'s. WorkloadError says what is
    wrong with the file, and where."""
    path = Path(path)
    line = first_line(path)
    if f'"{MARK}"' in line:
        workload = load_log(path)
    elif line.startswith("{"):
        workload = load_mooncake(path, spread=spread, seed=seed)
    elif set(azure.COLUMNS) <= _columns(line):
        workload = load_azure(path)
    elif set(servegen.COLUMNS) <= _columns(line):
        workload = load_servegen(path)
    else:
        raise WorkloadError(
            f"{path}, line 1: {line[:60]!r} begins no workload known here: Mooncake's lines of "
            f"JSON, CSV with {', '.join(azure.COLUMNS)} (Azure) or {', '.join(servegen.COLUMNS)} "
            "(ServeGen), or a log of pd bench"
        )
    if not workload.arrivals:
        raise WorkloadError(f"{path} has no requests")
    return workload


def _columns(line: str) -> set[str]:
    return {each.strip().lstrip("\ufeff") for each in line.split(",")}
