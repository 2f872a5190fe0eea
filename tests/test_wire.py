"""pd.wire: what is encoded decodes to the same; anything else is a WireError."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd import wire
from pd.errors import WireError
from pd.messages import (
    KINDS,
    Granted,
    Heartbeat,
    NodeHello,
    Peers,
    Rejected,
    Snapshot,
    Submit,
    Tokens,
)
from pd.types import SLO, NodeSnapshot, Peer, Request, SamplingParams, StepTime, TokenEvent, Work

CLUSTER = 0xC0FFEE


def pack(message: object, **fields: object) -> list[wire.Frame]:
    return wire.encode(message, cluster_id=CLUSTER, sender="node-0", **fields)


def unpack(frames: list[wire.Frame], **limits: int) -> tuple[wire.Header, object]:
    return wire.decode(frames, cluster_id=CLUSTER, **{"max_body": 1 << 20, **limits})


WORK = Work(
    Request(
        "r1",
        "gw",
        (1, 2, 3),
        SamplingParams(n=2, logit_bias={5: -1.5}, stop=("end",), seed=2**63 - 1, logprobs=3),
        eos_token_ids=(0,),
        arrival_s=1.25,
        tenant="tenant ü",
        slo=SLO(0.5, None),
    ),
    (0, 1),
    (7,),
    2,
)
MESSAGES = [
    Submit(WORK),
    NodeHello(
        "n",
        "prefill",
        2**63,
        {"control": "tcp://[::1]:1"},
        2**64 - 1,
        8,
        16,
        99,
        4,
        1,
        "h",
        steps=(StepTime(0.25, 0, 0, 64, 64), StepTime(1e-3, 4, 900, 0, 0)),
    ),
    Peers((Peer("a", 1, {"control": "x"}), Peer("b", 2))),
    Snapshot(NodeSnapshot("n", "decode", 3, step_s=0.1)),
    Rejected("r", (0,), 0, 429, "full", 2.0),
    Granted(2**64 - 1, 3, tuple(range(300))),
    Tokens.pack(
        TokenEvent(f"r{i}", 0, 0, i, i, "stop" if i == 9 else None, -0.5, ((1, -0.5), (2, -1.0)))
        for i in range(10)
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_round_trip(message: object) -> None:
    header, decoded = unpack(pack(message, sender_epoch=3, receiver_epoch=4, sequence=2**64 - 1))
    assert decoded == message
    assert (header.sender, header.sender_epoch, header.receiver_epoch) == ("node-0", 3, 4)
    assert header.sequence == 2**64 - 1


def test_every_kind_has_a_decoder() -> None:
    for kind, message in KINDS.items():
        assert dataclasses.is_dataclass(message)
        assert wire.CONTROL._kind_of[message] == kind


def test_payload_frames_are_passed_through_uncopied() -> None:
    payload = [bytearray(b"a" * 100), memoryview(b"b" * 7)]
    frames = pack(Heartbeat("x"), payload=payload, transfer_id=5, layout=2**64 - 1)
    assert frames[1] is payload[0] and frames[2] is payload[1]
    header, _ = unpack(frames, max_payload=107)
    assert (header.payload_bytes, header.transfer_id, header.layout) == (107, 5, 2**64 - 1)


@pytest.mark.parametrize(
    "frames, limits, cause",
    [
        ([], {}, "no frames"),
        ([b""], {}, "too few"),
        ([b"x" * wire.HEADER_BYTES], {}, "not a frame of this protocol"),
        (pack(Heartbeat("x" * 100)), {"max_body": 50}, "over the limit of 50"),
        ([*pack(Heartbeat("x")), b"more"], {}, "payload of 4 bytes, but the header says 0"),
        (pack(Heartbeat("x"), payload=[b"four"]), {}, "over the limit of 0"),
        (pack(Heartbeat("x"), payload=[b"four"])[:1], {"max_payload": 9}, "header says 4"),
    ],
)
def test_refusals_name_their_cause(
    frames: list[wire.Frame], limits: dict[str, int], cause: str
) -> None:
    with pytest.raises(WireError, match=cause):
        unpack(frames, **limits)


def test_foreign_cluster_is_its_own_refusal() -> None:
    with pytest.raises(wire.ForeignClusterError):
        wire.decode(pack(Heartbeat("x")), cluster_id=1, max_body=1000)


def test_a_body_of_the_wrong_schema_is_refused() -> None:
    other = wire.Codec({4: Granted})  # speaks another language under the same number
    frames = other.encode(Granted(1, 2, ()), cluster_id=CLUSTER, sender="n")
    with pytest.raises(WireError, match="Heartbeat cannot be decoded"):
        unpack(frames)
    with pytest.raises(WireError, match="kind 999"):
        unpack(wire.Codec({999: Peer}).encode(Peer("a", 1), cluster_id=CLUSTER, sender="n"))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_steps_that_took_no_time_are_refused(seconds: float) -> None:
    """What is learnt divides by it."""
    step = StepTime(1.0, 1, 1, 0, 0)
    object.__setattr__(step, "seconds", seconds)
    frames = pack(NodeHello("n", "decode", 1, {}, 1, 8, 16, 99, 4, 1, "h", steps=(step,)))
    with pytest.raises(WireError, match="NodeHello cannot be decoded: a step takes more than 0"):
        unpack(frames)


@pytest.mark.parametrize("sender", ["", "ä", "a" * (wire.MAX_ID_BYTES + 1), "a\0b"])
def test_bad_sender_ids_cannot_be_sent(sender: str) -> None:
    with pytest.raises(WireError, match="sender id"):
        wire.encode(Heartbeat("x"), cluster_id=1, sender=sender)


def test_fields_out_of_range_and_unknown_messages_cannot_be_sent() -> None:
    with pytest.raises(WireError, match="out of range"):
        pack(Heartbeat("x"), sender_epoch=2**32)
    with pytest.raises(WireError, match="str is not a message"):
        pack("hello")


@given(st.lists(st.binary(max_size=300), max_size=3))
def test_random_bytes(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        unpack(frames, max_payload=1 << 20)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_flipped_bit_or_a_cut_is_noticed(message: object, data: st.DataObject) -> None:
    (frame,) = pack(message)
    damaged = bytearray(frame)
    if data.draw(st.booleans(), label="flip"):
        bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
        damaged[bit // 8] ^= 1 << bit % 8
    else:
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    with pytest.raises(WireError):
        unpack([bytes(damaged)])


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=200))
def test_a_peer_that_sends_well_formed_nonsense(kind: int, body: bytes) -> None:
    """Good header and checksum around an arbitrary body: decoded or refused, nothing else."""
    header = wire._HEADER.pack(
        wire.MAGIC, wire.VERSION, kind, 0, CLUSTER, b"n", 1, 1, 0, 0, 1, 0, len(body), 0
    )
    checksum = wire._CHECKSUM.pack(wire.xxhash.xxh3_64_intdigest(header + body))
    try:
        _, message = unpack([header + checksum + body])
    except WireError:
        return
    assert type(message) is KINDS[kind]
