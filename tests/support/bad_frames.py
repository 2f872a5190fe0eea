"""Messages that are wrong in one way each, sent to real sockets.

A receiver has to refuse every one, count it, and serve nothing of it; and afterwards it has to
take one that is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

import xxhash
import zmq
from kv_nodes import CLUSTER, LAYOUT, Node, wait_until

from kvstore.transport.inbox import CODEC, Blocks, Landed
from pd import wire
from pd.mailbox import Mailbox
from pd.messages import Stopped

BLOCK = LAYOUT.block_bytes
EPOCH, SENDER_EPOCH = 7, 3  # of the receiver, and of the sender it knows
Frames = list[bytes]


class BlockForger:
    """Good messages of blocks for one receiver, and what differs in the bad ones.

    `build` encodes the message for a transfer of two blocks; by default all is as it should be.
    """

    def __init__(self, random: Random, transport: str) -> None:
        self.random = random
        self.carried = transport == "zmq"  # whether the bytes are in the message

    def build(self, transfer_id: int, *, payload: Frames | None = None, **fields: object) -> Frames:
        data = [self.random.randbytes(BLOCK), self.random.randbytes(BLOCK)]
        digest = xxhash.xxh3_64_intdigest(b"".join(data)) if self.carried else 0
        header: dict[str, object] = {
            "cluster_id": CLUSTER, "sender": "a", "sender_epoch": SENDER_EPOCH,
            "receiver_epoch": EPOCH, "transfer_id": transfer_id, "layout": LAYOUT.fingerprint,
            "sequence": transfer_id,
        }  # fmt: skip
        header.update(fields)
        message = header.pop("message", None) or Blocks(0, 2, digest)
        if payload is None:
            payload = data if self.carried else []
        return [bytes(f) for f in CODEC.encode(message, payload=payload, **header)]

    # ------------------------------------------------------------------ one way to be wrong each
    def corrupted(self, transfer_id: int) -> Frames:
        return flip(self.random, self.build(transfer_id))

    def truncated(self, transfer_id: int) -> Frames:
        frames = self.build(transfer_id)
        at = self.random.randrange(len(frames))
        frames[at] = frames[at][: self.random.randrange(len(frames[at]))]
        return frames[: at + 1] if self.random.random() < 0.3 else frames

    def too_long(self, transfer_id: int) -> Frames:
        frames = self.build(transfer_id)
        if self.random.random() < 0.5:
            return [*frames, self.random.randbytes(self.random.randint(1, 99))]
        at = self.random.randrange(len(frames))
        frames[at] += self.random.randbytes(self.random.randint(1, 99))
        return frames

    def stale(self, transfer_id: int) -> Frames:
        other = self.random.choice([0, 1, 2, 4, 5, 6, 8, 2**32 - 1])
        field = self.random.choice(["sender_epoch", "receiver_epoch"])
        return self.build(transfer_id, **{field: other})

    def reordered(self, transfer_id: int) -> Frames:
        frames = self.build(transfer_id)
        if len(frames) == 1:  # a place in the transfer that is not its own
            return self.build(transfer_id, message=Blocks(1, 2, 0))
        before = list(frames)
        while frames == before:
            self.random.shuffle(frames)
        return frames

    def wrong_layout(self, transfer_id: int) -> Frames:
        kind = self.random.randrange(3)
        if kind == 0:
            return self.build(transfer_id, layout=self.random.getrandbits(64))
        if kind == 1:  # another KV, honestly described
            other = replace(LAYOUT, model="another", block_size=LAYOUT.block_size)
            return self.build(transfer_id, layout=other.fingerprint)
        claim = Blocks(
            0, 2, 0, self.random.choice(["float16", "int8", "float99", "x" * 99]),
            self.random.choice([0, -1, 1, 2**62]), self.random.choice([0, 1, 2, -1, 2**62]),
        )  # fmt: skip
        return self.build(transfer_id, message=claim)

    def not_granted(self, transfer_id: int) -> Frames:
        kind = self.random.randrange(3)
        if kind == 0:
            return self.build(transfer_id + 10**9)
        if kind == 1:
            return self.build(transfer_id, sender=self.random.choice(["b", "aa", "coordinator"]))
        first, count = self.random.choice([(1, 2), (2, 1), (-1, 2), (0, 3), (0, 0), (0, 2**62)])
        return self.build(transfer_id, message=Blocks(first, count, 0))

    def foreign(self, transfer_id: int) -> Frames:
        if self.random.random() < 0.5:
            return self.build(transfer_id, cluster_id=CLUSTER ^ 1 << self.random.randrange(64))
        return self.build(transfer_id, message=Landed(0, True), payload=[])

    def garbage(self, transfer_id: int) -> Frames:
        sizes = [self.random.choice([0, 1, 3, 119, 120, 200, 5000]) for _ in range(3)]
        return [self.random.randbytes(size) for size in sizes[: self.random.randint(1, 3)]]


WAYS = ("corrupted", "truncated", "too_long", "stale", "reordered", "wrong_layout", "not_granted",
        "foreign", "garbage")  # fmt: skip


def flip(random: Random, frames: Frames) -> Frames:
    """The same frames with up to eight bits of one of them flipped."""
    at = random.choice([i for i, frame in enumerate(frames) if frame])
    data = bytearray(frames[at])
    for bit in random.sample(range(8 * len(data)), random.randint(1, 8)):
        data[bit // 8] ^= 1 << bit % 8
    return [*frames[:at], bytes(data), *frames[at + 1 :]]


def attack_transport(transport: str, count: int, seed: int) -> Counter[str]:
    """Send `count` bad messages to a node; how many there were of each kind.

    AssertionError if one was not counted as refused, led to an arrival, or wrote where nothing
    was granted.
    """
    random = Random(seed)
    node = Node("bb", [transport], epoch=EPOCH)
    forger = BlockForger(random, transport)
    before = node.arena.blocks.copy()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(node.hub.endpoints()[transport].split()[-1])
    tried: Counter[str] = Counter()
    try:
        for transfer_id in range(count):
            way = random.choice(WAYS)
            node.hub.expect(transfer_id, "a", SENDER_EPOCH, (10, 11))
            socket.send_multipart(getattr(forger, way)(transfer_id))
            tried[way] += 1
            if transfer_id % 64 == 63 or transfer_id == count - 1:
                wait_until(lambda: node.hub.counters["refused"] == sum(tried.values()), "refusals")
                for known in range(transfer_id // 64 * 64, transfer_id + 1):
                    node.hub.forget(known)
                while socket.poll(0):  # answers to those that were well-formed: none says yes
                    answer = CODEC.decode(
                        socket.recv_multipart(), cluster_id=CLUSTER, max_body=4096
                    )
                    assert isinstance(answer[1], Landed) and not answer[1].ok
        assert not any(event.ok for event in node.collect()), "a bad message was served"
        others = [block for block in range(64) if block not in (10, 11)]
        assert (node.arena.blocks[others] == before[others]).all()
        node.hub.expect(count, "a", SENDER_EPOCH, (10, 11))
        if transport == "zmq":
            socket.send_multipart(forger.build(count))
            wait_until(lambda: any(event.ok for event in node.collect()), "a good message")
        assert node.hub.counters["refused"] == count
    finally:
        socket.close(linger=0)
        context.term()
        node.close()
    return tried


def attack_mailbox(count: int, seed: int) -> Counter[str]:
    """The same with control messages, sent to a mailbox."""
    random = Random(seed)
    mailbox = Mailbox("bb", CLUSTER)
    mailbox.epoch = EPOCH
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(mailbox.endpoint)

    def build(sequence: int, **fields: object) -> Frames:
        header: dict[str, object] = {
            "cluster_id": CLUSTER, "sender": "a", "sender_epoch": SENDER_EPOCH,
            "receiver_epoch": EPOCH, "connection": 2, "sequence": sequence,
        }  # fmt: skip
        header.update(fields)
        return [bytes(frame) for frame in wire.encode(Stopped(sequence), **header)]

    bad: dict[str, Callable[[int], Frames]] = {
        "corrupted": lambda n: flip(random, build(n)),
        "truncated": lambda n: [build(n)[0][: random.randrange(wire.HEADER_BYTES + 3)]],
        "too_long": lambda n: [*build(n), b"x"] if random.random() < 0.5 else [build(n)[0] + b"x"],
        "stale": lambda n: random.choice(
            [build(n, sender_epoch=0), build(n, sender_epoch=2), build(n, receiver_epoch=6),
             build(n, connection=1)]
        ),
        "reordered": lambda n: build(random.randrange(n)),  # said and taken before
        "foreign": lambda n: build(n, cluster_id=CLUSTER + 1),
        "garbage": lambda n: [random.randbytes(random.randrange(300))],
    }  # fmt: skip
    tried: Counter[str] = Counter()
    try:
        socket.send_multipart(build(0))
        assert mailbox.recv(5.0) == ("a", Stopped(0))
        for i in range(count):
            way = random.choice(list(bad))
            socket.send_multipart(bad[way](1))
            tried[way] += 1
            if i % 64 == 63 or i == count - 1:
                wait_until(lambda: _dropped(mailbox) == sum(tried.values()), "refusals")
        socket.send_multipart(build(1))
        assert mailbox.recv(5.0) == ("a", Stopped(1))
        assert _dropped(mailbox) == count
    finally:
        socket.close(linger=0)
        context.term()
        mailbox.close()
    return tried


def _dropped(mailbox: Mailbox) -> int:
    received = mailbox.recv(0.0)
    assert received is None, f"served {received}"
    return sum(n for name, n in mailbox.counters.items() if name.startswith("dropped_"))
