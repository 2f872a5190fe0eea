"""Azure's published traces of LLM inference (Azure/AzurePublicDataset, 2023 and 2024).

CSV with TIMESTAMP (UTC, fractions of a second), ContextTokens and GeneratedTokens. Nothing is
known of what prompts share.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

from pd.workload.arrival import Arrival, Workload
from pd.workload.rows import Row, csv_rows

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# Seven digits of a second are more than datetime takes.
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|\+00:00)?")


def load_azure(path: Path) -> Workload:
    """The trace of `path`, a .csv or .csv.gz file; its first request arrives at 0.
    WorkloadError names a bad line."""
    rows = [
        (
            _seconds(row),
            row.count("ContextTokens", least=1),
            max(1, row.count("GeneratedTokens")),
        )
        for row in csv_rows(path, COLUMNS)
    ]
    rows.sort(key=lambda each: each[0])
    start = rows[0][0] if rows else 0.0
    arrivals = [Arrival(time - start, prompt, output) for time, prompt, output in rows]
    return Workload(path.name.split(".")[0], arrivals)


def _seconds(row: Row) -> float:
    text = row.text("TIMESTAMP").strip()
    match = _STAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    except ValueError:
        raise row.error(
            f"'TIMESTAMP' is {text!r}; it must be a time such as 2023-11-16 18:15:46.6805900"
        ) from None
    return whole.timestamp() + float(match[2] or 0)
