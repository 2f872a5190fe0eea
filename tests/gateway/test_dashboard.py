"""The live page in a real browser: the key, clicking through, a node that dies, hostile text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cell import FakeCell, text_tokens
from front import Front, serving
from rejecting import reject_with

from pd.gateway import history
from pd.types import NodeSnapshot, Notice

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEY = "k-3c0de"
WAIT_MS = 30_000


def row(node_id: str, role: Any, **fields: Any) -> dict[str, Any]:
    """A node with all that a coordinator says of one."""
    from pd.member import Node
    from pd.messages import NodeHello

    hello = NodeHello(node_id, role, 1, {}, 7, 100, 16, 2048, 8, 4242, "host-a")
    snapshot = NodeSnapshot(node_id, role, 3, num_blocks=100, free_blocks=60, **fields)
    return {**Node(hello, 3, 0.0, snapshot).describe(0.1), "directory_blocks": 5}


NODES = (
    row("prefill-0", "prefill", prefill_tokens=900, num_transfers=3, transferred_bytes=5_000_000,
        transfer_s=0.1, num_waiting=2, waiting_tokens=700),
    row("decode-0", "decode", num_running=3, cache_hit_tokens=100),
    row("decode-1", "decode"),
    row("pool-0", "pool", cached_blocks=40),
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as running:
        if path is None and not Path(running.chromium.executable_path).exists():
            pytest.skip(f"no browser: none of {', '.join(NAMES)}, nor playwright's own Chromium")
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def module_front(text_model_dir: Path) -> Iterator[Front]:
    def prepare(cell: FakeCell) -> None:
        cell.nodes = NODES

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "INTERVAL_S", 0.2)
        with serving(text_model_dir, api_keys={KEY: "", "theirs": "t"}, prepare=prepare) as front:
            front.http.headers["authorization"] = f"Bearer {KEY}"
            yield front


class Seen:
    """A tab, and what it said and asked for meanwhile."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{url}/dashboard")

    def unlock(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="open").click()

    def says(self, selector: str, text: str | re.Pattern[str]) -> None:
        playwright.expect(self.page.locator(selector)).to_contain_text(text, timeout=WAIT_MS)


@pytest.fixture
def seen(browser: Any, front: Front) -> Iterator[Seen]:
    front.cell.nodes = NODES
    context = browser.new_context(viewport={"width": 1366, "height": 768}, color_scheme="light")
    tab = Seen(context, front.url)
    yield tab
    context.close()
    assert all(url.startswith(front.url) for url in tab.asked), "something from elsewhere"
    assert not any(KEY in url for url in tab.asked)
    errors = [text for text in tab.complaints if "status of 40" not in text]  # of wrong keys
    assert not errors


def test_without_the_key_there_is_no_data(seen: Seen) -> None:
    page = seen.page
    page.get_by_label("API key").wait_for()
    assert not page.locator("#main").is_visible()
    assert "decode-0" not in page.content()
    seen.unlock("wrong")
    seen.says("#key-error", "wrong or missing API key")
    seen.unlock("theirs")
    seen.says("#key-error", "gateway.api_key")
    seen.unlock(KEY)
    seen.says("#nodes", "decode-0")
    page.reload()
    seen.says("#nodes", "decode-0")
    # Another tab does not have it; nor does this one, once it is forgotten.
    other = Seen(page.context, page.url.removesuffix("/dashboard"))
    other.page.get_by_label("API key").wait_for()
    page.get_by_role("button", name="sign out").click()
    page.get_by_label("API key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_clicking_through(seen: Seen, front: Front) -> None:
    page = seen.page
    front.cell.script = lambda request, index: text_tokens("x" * 30)
    front.cell.step_s = 0.004
    for _ in range(3):
        front.complete(slo={"ttft_ms": 60_000, "tpot_ms": 60_000})
    front.complete(slo={"ttft_ms": 0.001})
    seen.unlock(KEY)
    seen.says("#state", "ready")
    seen.says("[data-tile=attainment]", re.compile(r"[1-9]\d\.\d %"))
    assert page.locator("#chart-ttft svg path").count() == 3
    seen.says("#nodes", "Decode · 2")
    seen.says("#tiers", "pool memory")
    seen.says("#sources", "own cache 10.0 %")
    seen.says("#transfers", "5.0 MB")
    rows = page.locator("tr.row")
    assert rows.count() == 4
    seen.says("tr.row:nth-child(1)", "late: ttft")
    rows.nth(1).click()
    seen.says("#detail", "first step")
    seen.says("#detail dl", "prefill-0 to decode-0")
    assert page.locator("#detail .span").count() >= 3
    rows.nth(0).focus()
    page.keyboard.press("Enter")
    seen.says("#detail dl", "target 1 µs")
    assert page.locator("tr.row.chosen").count() == 1
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#range").select_option("1800")
    page.locator("#chart-ttft svg").hover()
    seen.says("#chart-ttft .tip", "p50")
    overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(overflow), "wider than a laptop"


def test_a_node_that_dies_and_comes_back(seen: Seen, front: Front) -> None:
    seen.unlock(KEY)
    seen.says("#state", "ready")
    front.cell.notices = [Notice(1.7e9, "lost", "decode-1 was lost", "its process has ended")]
    front.cell.nodes = tuple(node for node in NODES if node["id"] != "decode-1")
    seen.says("#state", "degraded: decode-1 is gone")
    seen.says("[data-node=decode-1]", "gone for")
    seen.says("#decisions", "its process has ended")
    front.cell.nodes = tuple({**n, "epoch": 9} if n["id"] == "decode-1" else n for n in NODES)
    seen.says("#state", re.compile("^ready$"))
    seen.says("#decisions", "decode-1 joined as a decode node")
    front.cell.ready = False
    seen.says("#state", "not ready: no decode node is up")


def test_text_from_elsewhere_is_only_text(seen: Seen, front: Front) -> None:
    evil = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
    front.cell.notices = [Notice(1.7e9, "change", evil, evil, {evil: 1.0})]
    front.cell.nodes = (row(evil, "decode"), *NODES[:2])
    front.cell.reject = reject_with(429, message=evil)
    assert front.post("/v1/completions", {"prompt": evil}).status_code == 429
    seen.unlock(KEY)
    seen.says("#decisions", evil)
    seen.says("#nodes", evil)
    assert seen.page.evaluate("window.hit") is None
