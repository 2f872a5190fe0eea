#!/usr/bin/env python3
"""Pictures of the live page, and of `pd top`, for the docs: an idle, a loaded, a degraded cell.

    python scripts/dashboard_pictures.py [--seconds 60] [--out docs]

A real cell of two prefill nodes, two decode nodes and a pool serves a small random model; then a
decode node is killed. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from bench_front import write_model
from benchlib.cells import node_pids, resolve, running, say
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from pd.cli.top import look
from pd.cli.top_view import view
from pd.client import Client
from pd.cluster import Cluster

SIZE = {"width": 1440, "height": 900}
TOP_SIZE = (140, 44)
CLIENTS = 12


def keep_asking(url: str, over: threading.Event, seed: int) -> None:
    """Conversations of a few turns, one after another; what fails is the cell's to show."""
    draw = random.Random(seed)
    history: list[int] = []
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while not over.is_set():
            if len(history) > 1500 or not history:
                history = [draw.randrange(5, 250) for _ in range(draw.randrange(100, 600))]
            body = {"prompt": history, "max_tokens": draw.randrange(20, 160), "ignore_eos": True}
            try:
                client.post("/v1/completions", json=body).raise_for_status()
            except httpx.HTTPError as error:
                say(f"a request failed: {error!r}")
                over.wait(1.0)
            history += [draw.randrange(5, 250) for _ in range(draw.randrange(20, 200))]
            over.wait(draw.random() * 0.4)


def shoot(page: Page, path: Path) -> None:
    drawn = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    drawn.quantize(128).save(path, optimize=True)  # few colours: a third of the bytes
    say(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def choose_request(page: Page) -> None:
    """One that is over and took all its steps."""
    rows = page.locator("tr.row", has=page.locator(".badge.good, .badge.warn"))
    rows.nth(2).click()


def draw_top(url: str, path: Path) -> None:
    """`pd top` as a picture of a terminal."""
    width, height = TOP_SIZE
    with Client(url) as client:
        seen = look(client)
    out = Console(record=True, width=width, height=height, file=io.StringIO())
    out.print(view(seen, width, height))
    drawn = out.export_svg(title="pd top")
    # Any font of fixed width does; a picture has nothing to load from elsewhere.
    path.write_text(re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", drawn, flags=re.DOTALL))


def under_load(page: Page, cluster: Cluster, args: argparse.Namespace) -> None:
    """The loaded cell, then one that lost a decode node."""
    time.sleep(args.seconds)
    choose_request(page)
    page.evaluate("window.scrollTo(0, 0)")
    time.sleep(2.5)
    shoot(page, args.out / "dashboard_loaded.png")
    draw_top(cluster.url, args.out / "top.svg")
    page.locator("#theme").click()
    (pid,) = [pid for pid, name in node_pids(cluster).items() if name == "decode-1"]
    os.kill(pid, signal.SIGKILL)
    page.locator(".node.gone").wait_for(timeout=60_000)
    time.sleep(1.0)
    shoot(page, args.out / "dashboard_degraded.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of load before the picture")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as browsers:
        model: Any = str(write_model(Path(folder)))
        config = resolve(
            model=model, load_format="dummy", prefill=2, decode=2, threads_per_node=1,
            kv_cache_gib=0.05, pool_dram_gib=0.05, ttft_ms=250, tpot_ms=60,
            served_model_name="demo", max_num_batched_tokens=128,
        )  # fmt: skip
        browser = browsers.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        with running(config) as cluster:
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.goto(f"{cluster.url}/dashboard")
            page.locator("#nodes .node").first.wait_for()
            time.sleep(6)
            shoot(page, args.out / "dashboard_idle.png")
            over = threading.Event()
            threads = [
                threading.Thread(target=keep_asking, args=(cluster.url, over, i))
                for i in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            try:
                under_load(page, cluster, args)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
        browser.close()


if __name__ == "__main__":
    main()
