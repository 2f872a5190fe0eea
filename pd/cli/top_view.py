"""What `pd top` draws, from what the server told. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pd.cli.cell import table
from pd.cli.kv import sources, tiers

_SPARKS = "▁▂▃▄▅▆▇█"
_GLANCE = 30  # samples: a minute
# The colours of a request's parts, as on the live page.
PARTS: Mapping[str, str] = {
    "admit": "bright_black", "queue": "yellow", "fetch": "magenta", "compute": "blue",
    "transfer": "red", "first_step": "cyan", "decode": "green",
}  # fmt: skip
_SILENT_S = 3.0
_MIN_REQUESTS = 3

Seen = Mapping[str, Any]


def view(seen: Seen, width: int, height: int | None) -> RenderableType:
    """All of it, for a terminal of this size; requests fill what is left of its height."""
    status, history = seen["status"], seen["history"]
    columns = history["columns"]
    nodes, gone = status["nodes"], history["gone"]
    parts: list[RenderableType] = [
        _title(status, history),
        _numbers(status, columns),
        _curves(columns, history["targets"], max(20, min(120, width - 68))),
        _nodes(nodes, gone, history["now"]),
        _kv(nodes),
    ]
    decisions = seen["decisions"][:4]
    requests = [*seen["requests"]["running"], *seen["requests"]["ended"]]
    # The title, numbers, curves and heads of tables; then a line for each of the others.
    used = 18 + len(nodes) + len(gone) + len(list(tiers(nodes))) + len(decisions)
    room = 20 if height is None else max(_MIN_REQUESTS, height - used)
    parts += [_requests(requests[:room], max(16, min(60, width - 104))), _decisions(decisions)]
    return Group(*parts)


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.0f} ms" if value >= 0.1 else f"{value * 1000:.1f} ms"


def spark(values: Sequence[float | None], width: int) -> str:
    """The last so many values, scaled to the largest of them; a gap where there is none."""
    last = values[-width:]
    top = max((value for value in last if value is not None), default=0.0)

    def mark(value: float | None) -> str:
        if value is None:
            return " "
        return _SPARKS[round(value / top * (len(_SPARKS) - 1))] if top > 0 else _SPARKS[0]

    return "".join(map(mark, last)).rjust(width)


def gauge(share: float, width: int = 12) -> Text:
    full = round(max(0.0, min(1.0, share)) * width)
    return Text("━" * full, "blue") + Text("━" * (width - full), "bright_black")


def waterfall(request: Seen, longest_s: float, width: int) -> Text:
    """A request's parts side by side; what is too short for a cell is left out."""
    drawn, at = Text(), 0
    for span in request["spans"]:
        end = round(span["end_s"] / max(longest_s, 1e-9) * width)
        drawn.append("━" * (end - at), PARTS[span["name"]])
        at = max(at, end)
    return drawn


def _title(status: Seen, history: Seen) -> Text:
    title = Text.assemble((" pd ", "bold reverse"), f"  {status['model']}  ")
    ill = [f"{node['id']} is gone" for node in history["gone"]]
    ill += [f"{n['id']} is {_state(n)}" for n in status["nodes"] if _state(n) != "ready"]
    if not status["ready"]:
        title.append(f"● not ready: {status['reason']}", "bold red")
    elif ill:
        title.append(f"● degraded: {', '.join(ill)}", "bold yellow")
    else:
        title.append("● ready", "bold green")
    at = time.strftime("%H:%M:%S", time.localtime(history["now"]))
    return title.append(f"   {history['gateway']} {at}   q leaves\n", "bright_black")


def _state(node: Seen) -> str:
    if node.get("silent_s", 0.0) > _SILENT_S:
        return f"silent for {node['silent_s']:.0f} s"
    return str(node.get("state", "ready"))


def _lately(columns: Seen, name: str) -> float:
    values = [value for value in columns.get(name, [])[-_GLANCE:] if value is not None]
    return sum(values) / len(values) if values else 0.0


def _numbers(status: Seen, columns: Seen) -> Table:
    good, missed = _lately(columns, "attained_per_s"), _lately(columns, "missed_per_s")
    share = good / (good + missed) if good + missed else None
    colour = "white" if share is None else "green" if share >= 0.95 else "yellow"
    refused, resumed = _lately(columns, "rejected_per_s"), _lately(columns, "interrupted_per_s")
    gateway = status["gateway"]
    made = Table.grid(padding=(0, 4, 0, 1))
    made.add_row(
        *(
            Text(name, "bright_black")
            for name in ("attainment", "goodput", "tokens", "streaming", "waiting", "refused",
                         "resumed")
        )
    )  # fmt: skip
    made.add_row(
        Text("-" if share is None else f"{share:.1%}", f"bold {colour}"),
        "-" if share is None else f"{good:.2f}/s",
        f"{_lately(columns, 'tokens_per_s'):.1f}/s",
        str(gateway["running"]),
        str(gateway["waiting"]),
        Text(f"{refused:.2f}/s", "yellow" if refused else ""),
        Text(f"{resumed:.2f}/s\n", "yellow" if resumed else ""),
    )
    return made


def _curves(columns: Seen, targets: Mapping[str, float | None], width: int) -> Table:
    made = Table.grid(padding=(0, 2, 0, 1))
    for label, name in (("TTFT", "ttft"), ("TPOT", "tpot")):
        values = columns.get(f"{name}_p90", [])
        figures = "  ".join(
            f"{p} {seconds((columns.get(f'{name}_{p}') or [None])[-1])}"
            for p in ("p50", "p90", "p99")
        )
        target = targets[f"{name}_s"]
        aim = "" if target is None else f"  target {seconds(target)}"
        made.add_row(f"{label} p90", Text(spark(values, width), "cyan"), figures + aim)
    tokens = columns.get("tokens_per_s", [])
    made.add_row("tokens/s", Text(spark(tokens, width), "cyan"), f"{(tokens or [0.0])[-1]:.1f}/s")
    running = columns.get("running", [])
    made.add_row("streaming", Text(spark(running, width), "cyan"), f"{(running or [0])[-1]:.0f}\n")
    return made


def _nodes(nodes: Iterable[Seen], gone: Iterable[Seen], now: float) -> Table:
    made = table(
        "node", "role", "state", "queue", "batch", "KV in use", "", "step", "KV sent", text=3
    )
    for node in nodes:
        used = 1 - node["free_blocks"] / max(1, node["num_blocks"])
        if node["role"] == "pool":
            used = node["cached_blocks"] / max(1, node["num_blocks"])
            work = ("", "")
        else:
            work = (
                f"{node['num_waiting']} ({node['waiting_tokens']} tok)",
                f"{node['num_running']}/{node['max_num_seqs']}",
            )
        state = _state(node)
        made.add_row(
            node["id"], node["role"], Text(state, "green" if state == "ready" else "yellow"), *work,
            gauge(used), f"{used:.0%}", seconds(node["step_s"]),
            f"{node['transferred_bytes'] / 1e6:.1f} MB",
        )  # fmt: skip
    for node in gone:
        away = Text(f"gone for {max(0.0, now - node['since']):.0f} s", "red")
        made.add_row(node["id"], node["role"], away)
    return made


def _kv(nodes: Sequence[Seen]) -> RenderableType:
    made = table("\nKV in", "\ntier", "\nheld", "\nof", "\nfill", "", text=2)
    for row in tiers(nodes):
        fill = row["tokens"] / row["capacity"] if row["capacity"] else 0.0
        made.add_row(
            row["id"], row["tier"], f"{row['tokens']:,}", f"{row['capacity']:,}", gauge(fill),
            f"{fill:.0%}",
        )  # fmt: skip
    counts = sources(nodes)
    total = sum(counts.values())
    if not total:
        return made
    shares = ", ".join(f"{name} {tokens / total:.0%}" for name, tokens in counts.items())
    return Group(made, Text(f"KV of prompts: {shares}", "bright_black"))


def _requests(requests: Sequence[Seen], width: int) -> RenderableType:
    made = table(
        "\nat", "\nrequest", "\noutcome", "\nprompt", "\noutput", "\nTTFT", "\nTPOT", "\ntotal",
        text=3,
    )  # fmt: skip
    made.add_column("\n" + "", justify="left")
    longest = max((request["e2e_s"] for request in requests), default=0.0)
    for request in requests:
        made.add_row(
            time.strftime("%H:%M:%S", time.localtime(request["arrived_at"])),
            request["request_id"][-24:], _outcome(request),
            str(request["prompt_tokens"]), str(request["output_tokens"]),
            seconds(request["ttft_s"]), seconds(request["tpot_s"]), seconds(request["e2e_s"]),
            waterfall(request, longest, width),
        )  # fmt: skip
    return Group(made, Text.assemble(*_legend()))


def _legend() -> Iterator[str | tuple[str, str]]:
    for name, colour in PARTS.items():
        yield ("━ ", colour)
        yield (f"{name.replace('_', ' ')}  ", "bright_black")
    yield "\n"


def _outcome(request: Seen) -> Text:
    if request["outcome"] == "finished" and request["attained"] is not None:
        if request["attained"]:
            return Text("on time", "green")
        return Text(f"late: {', '.join(request['missed'])}", "yellow")
    bad = request["outcome"] in ("failed", "rejected")
    return Text(request["outcome"], "red" if bad else "")


def _decisions(decisions: Sequence[Seen]) -> RenderableType:
    lines = []
    for each in decisions:
        at = time.strftime("%H:%M:%S", time.localtime(each["last_at"]))
        times = f" {each['times']}×" if each["times"] > 1 else ""
        line = Text.assemble(f"{at}  ", (each["what"] + times, "bold"), f"  {each['reason']}")
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    return Group(*lines) if lines else Text("no decisions yet", "bright_black")
