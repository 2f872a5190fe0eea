"""pd.mailbox over loopback sockets: what is delivered, and everything that must not be."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from pd import sockets, wire
from pd.errors import ConfigError, WireError
from pd.mailbox import AsyncMailbox, Mailbox
from pd.messages import GatewayHello, Heartbeat, NodeHello, Stopped, Submit
from pd.types import Peer, Request, SamplingParams, Work

CLUSTER = 42
HELLO = GatewayHello("b", 1, {})


def peer_of(box: Mailbox, epoch: int | None = None) -> Peer:
    return Peer(box.my_id, box.epoch if epoch is None else epoch, {"control": box.endpoint})


@pytest.fixture
def make() -> Iterator[Callable[..., Mailbox]]:
    boxes: list[Mailbox] = []

    def new(my_id: str, epoch: int = 0, cluster_id: int = CLUSTER, **options: object) -> Mailbox:
        box = Mailbox(my_id, cluster_id, **options)
        box.epoch = epoch
        boxes.append(box)
        return box

    yield new
    for box in boxes:
        box.close()


@pytest.fixture
def raw() -> Iterator[Callable[[str], zmq.Socket[bytes]]]:
    """A bare ZeroMQ socket, for what no mailbox would send."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    opened: list[zmq.Socket[bytes]] = []

    def connect(endpoint: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.PUSH)
        opened.append(socket)
        socket.connect(endpoint)
        return socket

    yield connect
    for socket in opened:
        socket.close(linger=0)
    context.term()


def recv_all(box: Mailbox, count: int) -> list[tuple[str, object]]:
    received = []
    while len(received) < count:
        item = box.recv(5.0)
        assert item is not None, f"only {len(received)} of {count} arrived: {box.counters}"
        received.append(item)
    return received


def test_two_mailboxes_talk(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1), make("b", 2)
    a.connect(peer_of(b))
    b.connect(peer_of(a))
    for i in range(100):
        assert a.send("b", Stopped(i))
    assert [m for _, m in recv_all(b, 100)] == [Stopped(i) for i in range(100)]
    assert b.send("a", Heartbeat("b"))
    assert recv_all(a, 1) == [("b", Heartbeat("b"))]
    assert b.counters["gaps"] == 0 and b.recv(0) is None


def test_unknown_peer_and_forgotten_peer(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1), make("b", 1)
    assert not a.send("b", Heartbeat("a"))
    a.connect(peer_of(b))
    assert a.send("b", Heartbeat("a"))
    a.forget("b")
    a.forget("b")
    assert not a.send("b", Heartbeat("a"))
    assert a.counters["unsent_unknown_peer"] == 2


def test_only_hello_comes_from_epoch_zero(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1), make("b", 0)
    b.connect(peer_of(a))
    b.send("a", Heartbeat("b"))
    b.send("a", HELLO)
    b.send("a", NodeHello("b", "mixed", 1, {}, 1, 1, 1, 1, 1, 1, "h"))
    assert recv_all(a, 1) == [("b", HELLO)]
    assert isinstance(recv_all(a, 1)[0][1], NodeHello)
    assert a.counters["dropped_stale"] == 1
    b.epoch = 1
    b.send("a", Heartbeat("b"))
    assert recv_all(a, 1) == [("b", Heartbeat("b"))]
    assert a.counters["gaps"] == 0


def test_learning_the_epoch_of_a_peer_keeps_what_is_queued(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1), make("b", 0)
    a.connect(peer_of(b))
    a.send("b", Stopped(1))
    a.connect(peer_of(b, epoch=7))
    b.epoch = 7
    a.send("b", Stopped(2))
    assert [m for _, m in recv_all(b, 2)] == [Stopped(1), Stopped(2)]


def test_a_process_restarted_behind_the_same_address(make: Callable[..., Mailbox]) -> None:
    a = make("a", 1)
    old = make("b", 5)
    endpoint = old.endpoint
    a.connect(peer_of(old))
    a.send("b", Stopped(1))
    recv_all(old, 1)
    old.close()
    new = make("b", 6, bind=endpoint)
    # `a` does not know yet: its message for the old process reaches the new one, and is refused.
    a.send("b", Stopped(2))
    assert new.recv(0.5) is None
    assert new.counters["dropped_wrong_receiver"] == 1
    a.connect(Peer("b", 6, {"control": endpoint}))
    a.send("b", Stopped(3))
    assert recv_all(new, 1) == [("a", Stopped(3))]


def test_messages_of_a_replaced_sender_are_stale(make: Callable[..., Mailbox]) -> None:
    a = make("a", 1)
    old, new = make("b", 5), make("b", 6)
    for box in (old, new):
        box.connect(peer_of(a))
    a.connect(peer_of(old))
    old.send("a", Stopped(1))
    assert recv_all(a, 1) == [("b", Stopped(1))]
    # Known from the directory ...
    a.connect(peer_of(new))
    old.send("a", Stopped(2))
    assert a.recv(0.2) is None and a.counters["dropped_stale"] == 1
    # ... or from its first message.
    newer = make("b", 7)
    newer.connect(peer_of(a))
    newer.send("a", Stopped(3))
    recv_all(a, 1)
    new.send("a", Stopped(4))
    assert a.recv(0.2) is None and a.counters["dropped_stale"] == 2


def test_foreign_cluster(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1), make("b", 1, cluster_id=43)
    b.connect(peer_of(a))
    b.send("a", HELLO)
    assert a.recv(0.2) is None
    assert a.counters["dropped_foreign_cluster"] == 1


def test_a_gap_is_noticed(make: Callable[..., Mailbox], raw: Callable) -> None:
    gaps: list[str] = []
    a = make("a", 1, on_gap=gaps.append)
    socket = raw(a.endpoint)

    def send(sequence: int, connection: int = 1, epoch: int = 3) -> None:
        socket.send_multipart(
            wire.encode(
                Stopped(sequence), cluster_id=CLUSTER, sender="b", sender_epoch=epoch,
                receiver_epoch=1, connection=connection, sequence=sequence,
            )
        )  # fmt: skip

    for sequence in (0, 1, 3, 4):
        send(sequence)
    recv_all(a, 4)
    assert gaps == ["b"]
    send(0, connection=2)  # a new connection counts anew
    send(0, connection=5, epoch=4)  # and so does a new process
    recv_all(a, 2)
    assert gaps == ["b"]
    send(1, connection=6, epoch=4)
    recv_all(a, 1)
    assert gaps == ["b", "b"]
    send(5, connection=2, epoch=4)  # left over from a connection that was replaced
    assert a.recv(0.2) is None
    assert a.counters["dropped_stale"] == 1 and a.counters["gaps"] == 2


class Lossy:
    """A mailbox's socket to one peer that loses some of what it is given."""

    def __init__(self, box: Mailbox, peer_id: str, lost: set[int]) -> None:
        self._line, self._lost, self._count = box._lines[peer_id], lost, 0
        self._socket, self._line.socket = self._line.socket, self  # type: ignore[assignment]

    def send(self, frame: bytes, flags: int) -> None:
        self._count += 1
        if self._count not in self._lost:
            self._socket.send(frame, flags)

    def close(self, linger: int | None = None) -> None:
        self._socket.close(linger)


@pytest.mark.parametrize(
    "lost", [{1}, {5}, {2, 3, 7}, {20}, set(range(15, 24)), set(range(1, 41, 2))]
)
def test_what_was_lost_is_sent_again(make: Callable[..., Mailbox], lost: set[int]) -> None:
    """Also the last message, after which none shows that it is missing."""
    gaps: list[str] = []
    a, b = make("a", 1), make("b", 1, on_gap=gaps.append)
    a.connect(peer_of(b))
    b.connect(peer_of(a))
    Lossy(a, "b", lost)
    for number in range(20):
        assert a.send("b", Stopped(number))
    received: list[object] = []
    deadline = time.monotonic() + 20
    while len(received) < 20 and time.monotonic() < deadline:
        assert a.recv(0.0) is None
        if (got := b.recv(0.01)) is not None:
            received.append(got)
    assert received == [("a", Stopped(number)) for number in range(20)]
    assert not gaps and b.counters["received"] == 20 and a.counters["resent"] > 0


def test_two_that_both_lack_messages_do_not_wait_for_each_other(
    make: Callable[..., Mailbox],
) -> None:
    held: list[str] = []
    a, b = make("a", 1), make("b", 1)
    a.connect(peer_of(b))
    b.connect(peer_of(a))
    b.on_held = held.append
    Lossy(a, "b", {1, 2})
    Lossy(b, "a", {1, 2})
    for number in range(4):
        a.send("b", Stopped(number))
        b.send("a", Stopped(number))
    received: dict[str, list[object]] = {"a": [], "b": []}
    deadline = time.monotonic() + 20
    while min(map(len, received.values())) < 4 and time.monotonic() < deadline:
        for box in (a, b):
            if (got := box.recv(0.01)) is not None:
                received[box.my_id].append(got[1])
    assert received == {name: [Stopped(number) for number in range(4)] for name in "ab"}
    assert set(held) == {"a"}


def test_a_repeated_welcome_does_not_number_anew(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 3), make("b", 1)
    a.connect(peer_of(b))
    b.connect(peer_of(a))
    a.send("b", Stopped(1))
    a.epoch = 3
    a.send("b", Stopped(2))
    assert recv_all(b, 2) == [("a", Stopped(1)), ("a", Stopped(2))]
    a.epoch = 4
    a.send("b", Stopped(3))
    assert recv_all(b, 1) == [("a", Stopped(3))]


def test_a_full_queue_refuses_and_does_not_block(make: Callable[..., Mailbox]) -> None:
    a = make("a", 1, high_water_mark=10)
    a.connect(Peer("b", 1, {"control": "tcp://127.0.0.1:1"}))  # nobody listens there
    sent = [a.send("b", Heartbeat("a")) for _ in range(30)]
    assert sent == [True] * 10 + [False] * 20
    assert a.counters["unsent_queue_full"] == 20


def test_refused_messages_leave_no_gap(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1, high_water_mark=4), make("b", 1, high_water_mark=4)
    a.connect(peer_of(b))
    payload = Submit(Work(Request("r", "g", tuple(range(100_000)), SamplingParams()), (0,)))
    accepted = sum(a.send("b", payload) for _ in range(200))
    assert accepted < 200
    recv_all(b, accepted)
    assert a.send("b", Heartbeat("a"))
    recv_all(b, 1)
    assert b.counters["gaps"] == 0


def test_garbage_is_counted_and_survived(make: Callable[..., Mailbox], raw: Callable) -> None:
    a, b = make("a", 1), make("b", 1)
    socket = raw(a.endpoint)
    socket.send(b"")
    socket.send(b"GET / HTTP/1.1\r\n\r\n")
    socket.send_multipart([b"x" * 300, b"y"])
    socket.send(wire.encode(HELLO, cluster_id=CLUSTER, sender="b")[0][:-1])
    b.connect(peer_of(a))
    b.send("a", HELLO)
    assert recv_all(a, 1) == [("b", HELLO)]
    deadline = time.monotonic() + 5
    while a.counters["dropped_malformed"] < 4 and time.monotonic() < deadline:
        assert a.recv(0.05) is None
    assert a.counters["dropped_malformed"] == 4


def test_garbage_without_end_does_not_starve_the_caller(
    make: Callable[..., Mailbox], raw: Callable
) -> None:
    a = make("a", 1)
    socket = raw(a.endpoint)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            socket.send(b"garbage")

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(3):
            assert a.recv(0.01) is None
    finally:
        stop.set()
        thread.join()


def test_messages_over_the_limit(make: Callable[..., Mailbox], raw: Callable) -> None:
    a, b = make("a", 1, max_message_bytes=2000), make("b", 1, max_message_bytes=2000)
    b.connect(peer_of(a))
    assert not b.send("a", Heartbeat("x" * 3000))
    assert b.counters["unsent_too_long"] == 1
    raw(a.endpoint).send(b"z" * 100_000)  # ZeroMQ hangs up on it
    assert a.recv(0.2) is None
    b.send("a", Stopped(1))
    assert recv_all(a, 1) == [("b", Stopped(1))]


def test_wake_from_another_thread(make: Callable[..., Mailbox]) -> None:
    a = make("a", 1)
    timer = threading.Timer(0.05, a.wake)
    timer.start()
    begun = time.monotonic()
    assert a.recv(30.0) is None
    assert time.monotonic() - begun < 20
    timer.join()
    for _ in range(100_000):  # more than a pipe holds
        a.wake()
    assert a.recv(30.0) is None
    assert a.recv(0.01) is None


def test_a_peer_without_a_usable_address(make: Callable[..., Mailbox]) -> None:
    a = make("a", 1)
    with pytest.raises(WireError, match="no 'control' endpoint"):
        a.connect(Peer("b", 1, {"zmq": "tcp://127.0.0.1:1"}))
    with pytest.raises(WireError, match="not an address"):
        a.connect(Peer("b", 1, {"control": "nonsense"}))


def test_secrets(make: Callable[..., Mailbox]) -> None:
    a, b = make("a", 1, secret="s3cret"), make("b", 1, secret="s3cret")
    wrong, none = make("c", 1, secret="other"), make("d", 1)
    for box in (b, wrong, none):
        box.connect(peer_of(a))
        box.send("a", Heartbeat(box.my_id))
    assert recv_all(a, 1) == [("b", Heartbeat("b"))]
    assert a.recv(0.3) is None


@pytest.mark.parametrize(
    "address, cause",
    [
        ("tcp://" + "*:0", "every interface"),
        ("tcp://0.0" + ".0.0:1", "every interface"),
        ("tcp://[:" + ":]:*", "every interface"),
        ("tcp://192.0.2.1:*", "needs a cluster secret"),
        ("tcp://eth7:*", "needs a cluster secret"),
        ("udp://127.0.0.1:1", "cannot listen on"),
        ("127.0.0.1:1", "cannot listen on"),
    ],
)
def test_where_a_mailbox_may_listen(address: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        Mailbox("a", CLUSTER, bind=address)


def test_an_address_in_use_is_a_configuration_error(make: Callable[..., Mailbox]) -> None:
    with pytest.raises(ConfigError, match="in use"):
        Mailbox("b", CLUSTER, bind=make("a").endpoint)


def test_ipv6(make: Callable[..., Mailbox]) -> None:
    try:
        a = make("a", 1, bind="tcp://[::1]:*")
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    b = make("b", 1)
    b.connect(peer_of(a))
    b.send("a", Stopped(9))
    assert recv_all(a, 1) == [("b", Stopped(9))]
    assert sockets.is_loopback("::1")


def test_closing_twice_and_waking_after(make: Callable[..., Mailbox]) -> None:
    a = make("a", 1)
    a.close()
    a.close()
    a.wake()


def test_async_mailbox() -> None:
    async def run() -> None:
        a, b = AsyncMailbox("a", CLUSTER), AsyncMailbox("b", CLUSTER)
        a.epoch = b.epoch = 1
        a.connect(peer_of(b))
        b.connect(peer_of(a))
        try:
            assert await a.recv(0.01) is None
            waiting = asyncio.create_task(b.recv(10.0))
            await asyncio.sleep(0.01)
            for i in range(500):
                assert a.send("b", Stopped(i))
            assert await waiting == ("a", Stopped(0))
            for i in range(1, 500):
                assert await b.recv(5.0) == ("a", Stopped(i))
                if i % 50 == 0:  # the descriptor is edge-triggered: sending must not lose a wake
                    b.send("a", Stopped(i))
            for i in range(50, 500, 50):
                assert await a.recv(5.0) == ("b", Stopped(i))
            timer = threading.Timer(0.02, b.wake)
            timer.start()
            assert await b.recv(30.0) is None
            timer.join()
            cancelled = asyncio.create_task(b.recv(30.0))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            a.send("b", Stopped(1000))
            assert await b.recv(5.0) == ("a", Stopped(1000))
        finally:
            a.close()
            b.close()

    asyncio.run(run())
