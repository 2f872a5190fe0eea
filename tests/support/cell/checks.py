"""What must hold in a cell: at any moment, and once everything has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cell.oracle import expected_tokens
from cell.pool import SimPool

if TYPE_CHECKING:
    from cell.cell import Cell


def check_pages(cell: Cell) -> None:
    """Assert, at any moment, that every page has the holders it should have, and that a page
    into which a write is under way belongs to the hand-off that it is for."""
    for node in cell.nodes.values():
        node.check()
    check_copies(cell)
    for pool in cell.pools:
        _check_content(cell, pool)


def check_copies(cell: Cell, touched: str | None = None) -> None:
    """Assert that what copies (those to or from this process) read and write is held for them."""
    for copy in cell.network.copies:
        if touched is not None and touched not in (copy.sender.id, copy.receiver.id):
            continue
        push, sender = copy.push, cell.nodes[copy.sender.id]
        assert set(push.src) <= sender.reads(push.transfer_id), (
            f"blocks {push.src} of {copy.sender.id} are read by a copy, but not held for it"
        )
        if cell.alive(copy.receiver):
            receiver = cell.nodes[copy.receiver.id]
            assert set(push.dst) <= receiver.writes(push.transfer_id), (
                f"pages {push.dst} of {copy.receiver.id} may be written, but are not held for "
                f"transfer {push.transfer_id}"
            )


def check_tokens(cell: Cell) -> None:
    """Assert that what clients have so far is what the model draws."""
    for request_id, record in cell.gateway.records.items():
        for seq in record.sequences:
            if seq.tokens:
                expected = expected_tokens(record.request, seq.index)
                assert seq.tokens == expected[: len(seq.tokens)], (request_id, seq.index)


def _check_content(cell: Cell, pool: SimPool) -> None:
    """Assert that what the pool would give out for a key is what that key names."""
    for key, page in pool.core.tiers._page_of.items():
        known = cell.contents.setdefault(key, list(pool.engine.pages[page]))
        assert pool.engine.pages[page] == known, f"page {page} holds another block than its key's"


def check_done(cell: Cell) -> None:
    """Assert that every request ended, with the right tokens, and that nothing is held."""
    gateway = cell.gateway
    for request_id, record in gateway.records.items():
        if request_id in gateway.rejected:
            continue
        for seq in record.sequences:
            expected = expected_tokens(record.request, seq.index)
            if request_id in gateway.cancelled or (request_id, seq.index) in gateway.stopped:
                assert seq.tokens == expected[: len(seq.tokens)], request_id
            else:
                assert seq.finish in ("stop", "length"), (request_id, record.error)
                assert seq.tokens == expected, (request_id, seq.index)
    for node in cell.nodes.values():
        core = node.core
        core.check_idle()
        node.check()
        assert not node.expected, f"{node.address} still expects {node.expected}"
        if isinstance(node, SimPool):
            continue
        assert not core.prefill._by_request, core.prefill._by_request
        assert not core.decode._by_request, core.decode._by_request
        assert not core.decode.scheduler._forked, core.decode.scheduler._forked


def describe(cell: Cell) -> str:
    """Everything that is still going on, for a failure's message."""
    lines = [f"now={cell.now:.1f} assigned={cell.coordinator._assigned}"]
    lines += [f"{key}: {record.unfinished}" for key, record in cell.gateway.records.items()]
    for node_id, node in cell.nodes.items():
        core = node.core
        if isinstance(node, SimPool):
            lines.append(
                f"{node_id}: receiving={core.receiving} serving={core.serving} "
                f"disk={node.work} frozen={node.frozen}"
            )
            continue
        lines.append(
            f"{node_id}: tasks={core.prefill.tasks} handoffs={core.decode.handoffs} "
            f"running={core.decode.scheduler.running} free={core.pool.num_free} "
            f"puts={core.publisher._offers} fetches={core.fetcher._fetches} "
            f"serving={core.server._serving} frozen={node.frozen}"
        )
    lines += [f"{m.id}: credit={m.credit}" for m in cell.coordinator.members.nodes.values()]
    return "\n".join(lines)
