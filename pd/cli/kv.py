"""`pd kv`: where the KV of a running server lies, and what it saves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pd.cli.cell import add_flags, console, status, table

Node = Mapping[str, Any]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "kv",
        help="look into the KV caches of a running server",
        description="Where KV lies, how full each tier is, how much of all prompts was found and "
        "where, and which beginnings of prompts are asked for most.",
    )
    add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    cell = status(args)
    report = {
        "sources": sources(cell["nodes"]),
        "tiers": list(tiers(cell["nodes"])),
        "prefixes": list(cell.get("prefixes", ())),
    }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, args.url)
    return 0


def sources(nodes: Sequence[Node]) -> dict[str, int]:
    """Tokens of all prompts so far, by where their KV came from. A token that was fetched and
    then found in the node's own cache by a later prompt counts there as well."""
    pools = [node for node in nodes if node["role"] == "pool"]
    others = [node for node in nodes if node["role"] != "pool"]
    disk = sum(node["served_disk_blocks"] * node["block_size"] for node in pools)
    served = sum(node["served_blocks"] * node["block_size"] for node in pools)
    fetched = sum(node["fetched_tokens"] for node in others)
    found = sum(node["cache_hit_tokens"] for node in others)
    from_pool = min(fetched, served)
    return {
        "computed": sum(node["prefill_tokens"] for node in others),
        "own cache": max(0, found - fetched),
        "pool memory": max(0, from_pool - disk),
        "pool disk": min(from_pool, disk),
        "other nodes": fetched - from_pool,
    }


def tiers(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """Each place where blocks lie: how many tokens it holds, and how many it could."""
    for node in nodes:
        size = node["block_size"]
        yield {
            "id": node["id"],
            "tier": "memory" if node["role"] == "pool" else "node",
            "tokens": node["cached_blocks"] * size,
            "capacity": node["num_blocks"] * size,
            "given": node["served_blocks"] * size,
            "lost": node["dropped_blocks"] * size,
        }
        if node["num_disk_blocks"]:
            yield {
                "id": node["id"],
                "tier": "disk",
                "tokens": node["disk_blocks"] * size,
                "capacity": node["num_disk_blocks"] * size,
                "given": node["served_disk_blocks"] * size,
                "lost": 0,
            }


def _print(report: Mapping[str, Any], url: str) -> None:
    out = console()
    total = sum(report["sources"].values())
    out.print(f"{url}: {total:,} tokens of prompts so far", highlight=False)
    origins = table("KV from", "tokens", "share", text=1)
    for name, tokens in report["sources"].items():
        origins.add_row(name, f"{tokens:,}", f"{tokens / total:.1%}" if total else "-")
    out.print(origins)
    places = table("holder", "tier", "tokens held", "of", "fill", "given", "lost", text=2)
    for row in report["tiers"]:
        fill = row["tokens"] / row["capacity"] if row["capacity"] else 0.0
        places.add_row(
            row["id"], row["tier"], f"{row['tokens']:,}", f"{row['capacity']:,}", f"{fill:.0%}",
            f"{row['given']:,}", f"{row['lost']:,}",
        )  # fmt: skip
    out.print(places)
    if report["prefixes"]:
        prefixes = table("prefix", "tokens", "requests", "holders", text=1)
        for row in report["prefixes"]:
            prefixes.add_row(
                row["key"], f"{row['tokens']:,}", f"{row['requests']:,}", row["holders"]
            )
        out.print(prefixes)
