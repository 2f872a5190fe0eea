"""Nodes of other dtypes and tensor-parallel degrees exchange blocks, over every transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from kv_nodes import Node

from kvstore.convert import converted
from kvstore.layout import KVLayout
from kvstore.transport.events import Arrived

FULL = KVLayout("float32", 2, 4, 8, 4, "model")
TRANSPORTS = ("inproc", "shm", "zmq", "torch")

Make = Callable[[str, KVLayout], Node]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(transport: str) -> Iterator[Make]:
    nodes: list[Node] = []

    def new(node_id: str, layout: KVLayout, **settings: object) -> Node:
        node = Node(node_id, [transport], layout=layout, num_blocks=8, **settings)
        nodes.append(node)
        values = np.random.default_rng(len(node_id)).standard_normal((8, *layout.block_shape))
        plain = replace(layout, dtype="float32")
        blocks = values.astype(np.float32).reshape(8, -1).view(np.uint8)
        node.arena.blocks[:] = converted(blocks, range(8), plain, layout)
        return node

    yield new
    for node in nodes:
        node.close()


def send(a: Node, b: Node, transfer_id: int, src: tuple[int, ...], dst: tuple[int, ...]) -> bool:
    b.hub.expect(transfer_id, a.id, 1, dst)
    a.push(b, transfer_id, src, dst)
    return a.wait_pushed(transfer_id)[0].ok


@pytest.mark.parametrize("source", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("target", ["float32", "float16", "int8", "fp8"])
@pytest.mark.parametrize("verify", [True, False])
def test_other_dtypes(make: Make, source: str, target: str, verify: bool) -> None:
    a = make("a", replace(FULL, dtype=source), verify=verify)
    b = make("bb", replace(FULL, dtype=target), verify=verify)
    before = b.arena.blocks.copy()
    a.hub.connect(b.peer)
    assert send(a, b, 1, (5, 0, 1), (2, 7, 3))
    (event,) = b.arrived(1)
    smaller = min(a.arena.layout.block_bytes, b.arena.layout.block_bytes)
    sizes = {3 * b.arena.layout.block_bytes, 3 * smaller}
    assert isinstance(event, Arrived) and event.ok and event.num_bytes in sizes
    expected = converted(a.arena.blocks, (5, 0, 1), a.arena.layout, b.arena.layout)
    np.testing.assert_array_equal(b.arena.blocks[[2, 7, 3]], expected)
    np.testing.assert_array_equal(b.arena.blocks[[0, 1, 4, 5, 6]], before[[0, 1, 4, 5, 6]])


@pytest.mark.parametrize("senders", [1, 2, 4])
@pytest.mark.parametrize("receivers", [1, 2, 4])
def test_tensor_parallel_degrees(make: Make, senders: int, receivers: int) -> None:
    """Every rank pushes to every rank that shares a head with it; all of them have all then."""
    a = [make("a" * (i + 1), FULL.part("float32", i * 4 // senders, 4 // senders))
         for i in range(senders)]  # fmt: skip
    b = [make("b" * (i + 5), FULL.part("bfloat16", i * 4 // receivers, 4 // receivers))
         for i in range(receivers)]  # fmt: skip
    transfer_id = 0
    for receiver in b:
        for sender in a:
            theirs = sender.arena.layout
            common = set(theirs.kv_heads) & set(receiver.arena.layout.kv_heads)
            sender.hub.connect(receiver.peer)
            transfer_id += 1
            assert send(sender, receiver, transfer_id, (1, 6), (4, 0)) == bool(common)
    for receiver in b:
        for head in receiver.arena.layout.kv_heads:
            (sender,) = (node for node in a if head in node.arena.layout.kv_heads)
            one = FULL.part("bfloat16", head, 1)
            np.testing.assert_array_equal(
                converted(receiver.arena.blocks, (4, 0), receiver.arena.layout, one),
                converted(sender.arena.blocks, (1, 6), sender.arena.layout, one),
            )


def test_a_dtype_for_the_way(make: Make, transport: str) -> None:
    a, b = make("a", FULL, wire_dtype="int8"), make("bb", FULL)
    a.hub.connect(b.peer)
    assert send(a, b, 1, (3,), (4,))
    (event,) = b.arrived(1)
    int8 = replace(FULL, dtype="int8")
    if transport in ("inproc", "shm"):  # where there is no way
        np.testing.assert_array_equal(b.arena.blocks[4], a.arena.blocks[3])
    else:
        assert event.num_bytes == int8.block_bytes
        expected = converted(converted(a.arena.blocks, (3,), FULL, int8), (0,), int8, FULL)
        np.testing.assert_array_equal(b.arena.blocks[4], expected[0])


def test_a_dtype_for_the_way_never_takes_more_bytes(make: Make, transport: str) -> None:
    int8 = replace(FULL, dtype="int8")
    a, b = make("a", FULL, wire_dtype="float16"), make("bb", int8)
    a.hub.connect(b.peer)
    assert send(a, b, 1, (3,), (4,))
    (event,) = b.arrived(1)
    assert event.num_bytes == int8.block_bytes
    expected = converted(a.arena.blocks, (3,), FULL, int8)
    np.testing.assert_array_equal(b.arena.blocks[4], expected[0])


def test_what_cannot_be_converted_is_said(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    a, b = make("a", FULL.part("float32", 0, 2)), make("bb", FULL.part("float32", 2, 2))
    c = make("ccc", replace(FULL, block_size=8))
    for peer, cause in ((b, "no kv head"), (c, "different things")):
        a.hub.connect(peer.peer)
        assert cause in caplog.text
        assert not send(a, peer, 1, (0,), (0,)) and not peer.arrived(1)


def test_a_peer_whose_layout_cannot_be_read(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    a, b = make("a", FULL), make("bb", FULL)
    a.hub.connect(replace(b.peer, endpoints={**b.peer.endpoints, "layout": "nonsense"}))
    assert "cannot be read" in caplog.text
    assert not send(a, b, 1, (0,), (0,))
