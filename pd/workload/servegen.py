"""Rows sampled from ServeGen (alibaba/ServeGen): CSV with t_s, client_id, input_tokens and
output_tokens. A client is a tenant here."""

from __future__ import annotations

from pathlib import Path

from pd.workload.arrival import Arrival, Workload
from pd.workload.rows import csv_rows

COLUMNS = ("t_s", "client_id", "input_tokens", "output_tokens")


def load_servegen(path: Path) -> Workload:
    """The rows of `path`, a .csv or .csv.gz file. WorkloadError names a bad line."""
    arrivals = [
        Arrival(
            row.number("t_s"),
            row.count("input_tokens", least=1),
            max(1, row.count("output_tokens")),
            tenant=f"client-{row['client_id']}",
        )
        for row in csv_rows(path, COLUMNS)
    ]
    arrivals.sort(key=lambda each: each.time_s)
    return Workload(path.name.split(".")[0], arrivals)
