"""Which transport a hub takes, what a receiver refuses, and how a slow one slows its sender."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import xxhash
import zmq
from kv_nodes import CLUSTER, LAYOUT, Node, wait_until

from kvstore.arena import KVArena
from kvstore.transport.hub import TransportHub
from kvstore.transport.inbox import CODEC, Blocks, Landed, Rendezvous
from pd import wire
from pd.errors import ConfigError
from pd.types import Peer

BLOCK = LAYOUT.block_bytes


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    made: list[Node] = []
    yield made
    for node in made:
        node.close()


def pair(nodes: list[Node], a: Sequence[str], b: Sequence[str], **settings: object) -> list[Node]:
    nodes += [Node("a", a, epoch=1, **settings), Node("bb", b, epoch=2, **settings)]
    return nodes


def can_push(a: Node, b: Node, peer: Peer, transfer_id: int) -> bool:
    b.hub.expect(transfer_id, "a", 1, [transfer_id])
    a.push(peer, transfer_id, [0], [transfer_id])
    return a.wait_pushed(transfer_id)[0].ok


def test_the_most_wanted_transport_that_both_have(nodes: list[Node]) -> None:
    a, b = pair(nodes, ["shm", "zmq"], ["zmq", "shm"])
    assert set(a.hub.endpoints()) == {"shm", "zmq", "layout"}
    a.hub.connect(b.peer)
    b.hub.connect(a.peer)
    assert (a.hub.transport_of("bb"), b.hub.transport_of("a")) == ("shm", "zmq")
    assert a.hub.transport_of("nobody") is None


@pytest.mark.parametrize("broken", ["other host", "segment gone", "nonsense", "absent"])
def test_falling_back(nodes: list[Node], broken: str, caplog: pytest.LogCaptureFixture) -> None:
    a, b = pair(nodes, ["shm", "zmq"], ["shm", "zmq"])
    endpoints = b.hub.endpoints()
    host, segment, address = endpoints["shm"].split()
    if broken == "absent":
        del endpoints["shm"]
    else:
        endpoints["shm"] = {
            "other host": f"elsewhere {segment} {address}",
            "segment gone": f"{host} pd-kv-{'0' * 32} {address}",
            "nonsense": "x",
        }[broken]
    peer = Peer("bb", 2, endpoints)
    with caplog.at_level(logging.INFO):
        a.hub.connect(peer)
    assert a.hub.transport_of("bb") == "zmq"
    assert "by zmq (shm: " in caplog.text
    assert can_push(a, b, peer, 1)


def test_no_common_transport(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    a, b = pair(nodes, ["shm"], ["zmq"])
    a.hub.connect(b.peer)
    assert "no way to send blocks to bb" in caplog.text
    assert not can_push(a, b, b.peer, 1)
    caplog.clear()
    a.hub.connect(Peer("gateway", 1, {"control": "tcp://127.0.0.1:1"}))
    assert not caplog.records, "a gateway is no reason to worry"


def test_an_address_nobody_can_connect_to(nodes: list[Node]) -> None:
    a, b = pair(nodes, ["zmq"], ["zmq"])
    peer = Peer("bb", 2, {"zmq": "nonsense"})
    a.hub.connect(peer)
    assert not can_push(a, b, peer, 1)


def test_impossible_hubs() -> None:
    arena = KVArena(LAYOUT, 1, shared=False)
    for transports in ([], ["shm", "pigeon"]):
        with pytest.raises(ConfigError, match="inproc, shm, zmq"):
            TransportHub("a", 1, arena, transports=transports)
    with pytest.raises(ConfigError, match="shared memory"):
        TransportHub("a", 1, arena, transports=["zmq", "shm"])
    arena.close()


def test_expecting_a_transfer_twice(nodes: list[Node]) -> None:
    (a,) = nodes[:] = [Node("a", ["inproc"])]
    a.hub.expect(1, "b", 1, [0])
    with pytest.raises(ValueError, match="transfer 1 is expected already"):
        a.hub.expect(1, "b", 1, [0])


def test_pages_outside_of_the_receivers_arena(nodes: list[Node]) -> None:
    a, b = pair(nodes, ["shm"], ["shm"])
    a.hub.connect(b.peer)
    for transfer_id, page in ((1, 64), (2, -1)):
        a.push(b, transfer_id, [0], [page])
        assert not a.wait_pushed(transfer_id)[0].ok
    assert can_push(a, b, b.peer, 3)


@pytest.mark.parametrize("transport", ["shm", "zmq"])
def test_a_slow_receiver_slows_its_sender(nodes: list[Node], transport: str) -> None:
    settings = {"message_bytes": BLOCK, "window_bytes": 5 * BLOCK, "connections": 1}
    a, b = pair(nodes, [transport], [transport], **settings)
    a.hub.connect(b.peer)
    b.hub.expect(1, "a", 1, range(64))
    channel = a.hub._transports[transport]
    with b.hub._node.expected.lock:
        a.push(b, 1, range(64), range(64))
        wait_until(lambda: "bb" in channel._lanes and channel._lanes["bb"].num_sent > 0, "a start")
        lane = channel._lanes["bb"]
        wait_until(lambda: len(lane.waiting) == 59, "the window to fill")
        assert lane.num_sent == 5
    assert a.wait_pushed(1)[0].ok
    np.testing.assert_array_equal(b.arena.blocks, a.arena.blocks)


def test_several_connections_share_the_work(nodes: list[Node]) -> None:
    settings = {"message_bytes": BLOCK, "window_bytes": 6 * BLOCK, "connections": 3}
    a, b = pair(nodes, ["zmq"], ["zmq"], **settings)
    a.hub.connect(b.peer)
    b.hub.expect(1, "a", 1, range(64))
    with b.hub._node.expected.lock:
        a.push(b, 1, range(64), range(64))
        lanes = a.hub._transports["zmq"]._lanes
        wait_until(lambda: "bb" in lanes and lanes["bb"].num_sent == 6, "the windows to fill")
        assert [len(line.sent) for line in lanes["bb"].lines] == [2, 2, 2]
    assert a.wait_pushed(1)[0].ok
    np.testing.assert_array_equal(b.arena.blocks, a.arena.blocks)
    assert {event.ok for event in b.arrived(1)} == {True}


def test_a_stalled_connection_takes_the_others_along(nodes: list[Node]) -> None:
    settings = {"message_bytes": BLOCK, "connections": 3, "stall_timeout_s": 0.3}
    a, b = pair(nodes, ["zmq"], ["zmq"], **settings)
    a.hub.connect(b.peer)
    b.hub.expect(1, "a", 1, range(9))
    with b.hub._node.expected.lock:
        a.push(b, 1, range(9), range(9))
        assert not a.wait_pushed(1)[0].ok
    b.hub.forget(1)
    assert can_push(a, b, b.peer, 20), "the lane should have opened again"


def test_a_queue_that_is_full_refuses(nodes: list[Node]) -> None:
    for transport in ("inproc", "zmq"):
        limits = {"max_queued_pushes": 3, "message_bytes": BLOCK, "window_bytes": BLOCK}
        a, b = Node("a", [transport], **limits), Node("bb", [transport], **limits)
        nodes += [a, b]
        a.hub.connect(b.peer)
        b.hub.expect(1, "a", 1, range(20))
        with b.hub._node.expected.lock:
            for i in range(20):
                a.push(b, 1, [i], [i], first=i)
            wait_until(lambda a=a: len(a.pushed(1)) >= 16, "refusals")
            assert not any(event.ok for event in a.pushed(1))
        results = a.wait_pushed(1, 20)
        assert 3 <= sum(event.ok for event in results) <= 4


def test_a_transport_whose_thread_fails_fails_its_pushes(
    nodes: list[Node], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair(nodes, ["zmq"], ["zmq"])

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(a.hub._transports["zmq"], "_emit", fail)
    a.hub.connect(b.peer)
    b.hub.expect(1, "a", 1, [0, 1, 2])
    a.push(b, 1, [0, 1], [0, 1])
    a.push(b, 1, [0], [2], first=2)
    assert [event.ok for event in a.wait_pushed(1, 2)] == [False, False]
    a.push(b, 1, [0], [0])
    assert [event.ok for event in a.wait_pushed(1, 3)] == [False] * 3
    assert "zmq transport of a ended" in caplog.text


def test_a_piece_whose_answer_is_passed_over_was_lost(nodes: list[Node]) -> None:
    a = Node("a", ["zmq"], epoch=1, message_bytes=BLOCK)
    nodes.append(a)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.bind("tcp://127.0.0.1:*")
        peer = Peer("lossy", 1, {"zmq": router.getsockopt_string(zmq.LAST_ENDPOINT)})
        a.hub.connect(peer)
        a.push(peer, 1, [0, 1], [0, 1])
        a.push(peer, 2, [2], [2])
        for sequence in range(3):
            identity, *_ = router.recv_multipart()
            if sequence != 1:
                answer = CODEC.encode(Landed(sequence, True), cluster_id=CLUSTER, sender="lossy")
                router.send_multipart([identity, *answer])
        assert not a.wait_pushed(1)[0].ok and a.wait_pushed(2)[0].ok
    finally:
        router.close(linger=0)
        context.term()


# ------------------------------------------------------------------ forged messages
class Forger:
    """A sender that can say anything."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(endpoint.split()[-1])

    def send(self, payload: list[bytes], message: object | None = None, **fields: object) -> None:
        digest = xxhash.xxh3_64_intdigest(b"".join(payload))
        header: dict[str, object] = {
            "cluster_id": CLUSTER, "sender": "a", "sender_epoch": 1, "receiver_epoch": 2,
            "transfer_id": 1, "layout": LAYOUT.fingerprint, "sequence": 0,
        }  # fmt: skip
        message = message or Blocks(0, 2, digest)
        frames = CODEC.encode(message, payload=payload, **{**header, **fields})
        self.socket.send_multipart(frames)

    def answer(self) -> Landed | None:
        if not self.socket.poll(2000):
            return None
        frames = self.socket.recv_multipart()
        return CODEC.decode(frames, cluster_id=CLUSTER, max_body=4096)[1]

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def forged(nodes: list[Node]) -> Iterator[tuple[Forger, Node]]:
    nodes.append(Node("bb", ["zmq"], epoch=2))
    forger = Forger(nodes[0].hub.endpoints()["zmq"])
    nodes[0].hub.expect(1, "a", 1, [5, 6])
    yield forger, nodes[0]
    forger.close()


DATA = b"x" * BLOCK


@pytest.mark.parametrize(
    "payload, fields, cause",
    [
        ([DATA, DATA], {"layout": 1}, "layouts differ"),
        ([DATA, DATA], {"receiver_epoch": 1}, "meant for epoch 1"),
        ([DATA, DATA], {"sender": "c"}, "not expected"),
        ([DATA, DATA], {"sender_epoch": 2}, "not expected"),
        ([DATA, DATA], {"transfer_id": 2}, "not expected"),
        ([DATA, DATA], {"message": Blocks(0, 2, 0)}, "damaged"),
        ([DATA], {}, "damaged"),
        ([], {}, "damaged"),
        ([DATA * 3], {}, "damaged"),
        ([DATA + b"x", DATA[:-1]], {}, "damaged"),
        ([DATA, DATA], {"message": Blocks(-1, 2, 0)}, "not granted"),
        ([DATA, DATA], {"message": Blocks(1, 2, 0)}, "not granted"),
        ([DATA, DATA], {"message": Blocks(0, 0, 0)}, "not granted"),
        ([DATA, DATA], {"message": Blocks(0, 2**62, 0)}, "not granted"),
    ],
)
def test_what_a_receiver_refuses(
    forged: tuple[Forger, Node], payload: list[bytes], fields: dict[str, object], cause: str
) -> None:
    forger, node = forged
    forger.send(payload, **fields)
    answer = forger.answer()
    assert answer is not None and not answer.ok and cause in answer.reason
    assert not any(event.ok for event in node.collect())
    others = [block for block in range(64) if block not in (5, 6)]
    before = Node("bb", ["inproc"], epoch=2)  # the same random content
    np.testing.assert_array_equal(node.arena.blocks[others], before.arena.blocks[others])
    before.close()


def test_nonsense_is_counted_and_survived(forged: tuple[Forger, Node]) -> None:
    forger, node = forged
    forger.socket.send(b"")
    forger.socket.send_multipart([b"a", b"b", b"c"])
    forger.send([DATA], cluster_id=1)
    forger.send([], message=Landed(0, True))
    wait_until(lambda: node.hub.counters["refused"] == 4, "refusals")
    forger.send([DATA + DATA])
    answer = forger.answer()
    assert answer == Landed(0, True) and node.arena.blocks[6].tobytes() == DATA


def test_answers_to_nothing_are_ignored(nodes: list[Node]) -> None:
    """A sender whose receiver makes things up: only a genuine answer ends a push."""
    a = Node("a", ["zmq"], epoch=1, stall_timeout_s=0.5)
    nodes.append(a)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.bind("tcp://127.0.0.1:*")
        peer = Peer("liar", 1, {"zmq": router.getsockopt_string(zmq.LAST_ENDPOINT)})
        a.hub.connect(peer)
        a.push(peer, 1, [0, 1], [0, 1])
        identity, *frames = router.recv_multipart()
        header, message = wire.Codec({100: Blocks}).decode(
            frames, cluster_id=CLUSTER, max_body=4096, max_payload=1 << 20
        )
        assert (header.transfer_id, message.count) == (1, 2)
        for sender, sequence in (("liar", 77), ("someone", 0)):
            (frame,) = CODEC.encode(Landed(sequence, True), cluster_id=CLUSTER, sender=sender)
            router.send_multipart([identity, frame])
        router.send_multipart([identity, b"garbage"])
        (event,) = a.wait_pushed(1)
        assert not event.ok
        wait_until(lambda: a.hub.counters["refused"] == 2, "refusals")
    finally:
        router.close(linger=0)
        context.term()


# ------------------------------------------------------------------ ways that must be set up
def test_a_group_that_cannot_be_made_gives_way_to_another_transport(
    nodes: list[Node], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair(nodes, ["torch", "zmq"], ["torch", "zmq"])

    def fail(*_: object) -> None:
        raise RuntimeError("no such interface\nand a long trace")

    monkeypatch.setattr(a.hub._transports["torch"], "_make_group", fail)
    a.hub.connect(b.peer)
    assert a.hub.transport_of("bb") == "torch"
    assert not can_push(a, b, b.peer, 1)
    wait_until(lambda: bool(a.hub._node.unusable), "the failure to be known")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert can_push(a, b, b.peer, 2) and can_push(a, b, b.peer, 3)
    assert a.hub.transport_of("bb") == "zmq"
    (line,) = (r.message for r in caplog.records if "go by" in r.message)
    assert line == "blocks to bb go by zmq (torch: it could not be set up)"


def test_other_backends_do_not_meet(nodes: list[Node]) -> None:
    a, b = pair(nodes, ["torch", "zmq"], ["torch", "zmq"])
    endpoints = b.hub.endpoints()
    a.hub.connect(Peer("bb", 2, {**endpoints, "torch": endpoints["torch"].replace("gloo", "nccl")}))
    assert a.hub.transport_of("bb") == "zmq"


def test_a_group_that_breaks_is_made_again(nodes: list[Node]) -> None:
    a, b = pair(nodes, ["torch"], ["torch"])
    a.hub.connect(b.peer)
    assert can_push(a, b, b.peer, 1)
    ends = a.hub._transports["torch"]._couriers

    def fail(_: object) -> None:
        raise RuntimeError("connection reset")

    ends["bb"].submit(fail)
    wait_until(lambda: "bb" not in ends, "the lane to be closed")
    assert can_push(a, b, b.peer, 2)
    assert a.hub.transport_of("bb") == "torch" and not a.hub._node.unusable


@pytest.mark.parametrize("late", ["an entry", "blocks"])
def test_what_a_sender_said_of_an_earlier_group_comes_late(nodes: list[Node], late: str) -> None:
    a, b = pair(nodes, ["torch"], ["torch"], stall_timeout_s=60.0)
    for transfer_id in (1, 2):  # in a group each
        a.hub.forget_peer("bb")
        a.hub.connect(b.peer)
        assert can_push(a, b, b.peer, transfer_id)
    b.hub.expect(3, "a", 1, [3])
    forger = Forger(b.hub.endpoints()["torch"])
    try:
        if late == "blocks":
            forger.send([], Blocks(0, 1, 0), transfer_id=3, flags=1)
            assert forger.answer() == Landed(0, False, "the bytes did not come")
        else:
            forger.send([], Rendezvous(1, "0/0", b"where a was"), layout=0)
            forger.send([], Blocks(0, 1, 0), transfer_id=99)  # taken up after the entry
            assert forger.answer() == Landed(0, False, "not expected")
    finally:
        forger.close()
    assert can_push(a, b, b.peer, 4)
    assert not b.arrived(3)


def test_nixl_is_done_without_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    arena = KVArena(LAYOUT, 1, shared=False)
    with pytest.raises(ConfigError, match="pip install nixl"):
        TransportHub("a", 1, arena, transports=["nixl"])
    hub = TransportHub("a", 1, arena, transports=["nixl", "zmq"])
    assert set(hub.endpoints()) == {"zmq", "layout"}
    assert "a does without nixl" in caplog.text
    hub.close()
    arena.close()
