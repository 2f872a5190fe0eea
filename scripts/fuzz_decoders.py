#!/usr/bin/env python3
"""Coverage-guided fuzzing of everything that reads foreign bytes: scripts/fuzz_decoders.py

    python scripts/fuzz_decoders.py [--runs 2000000] [--decoders control blocks disk layout]

Needs atheris (`pip install atheris`). Each decoder runs in a process of its own, whose memory
is bounded. A decoder may return a value or raise its own error; anything else is a crash, and
the input is kept in a file. Half of the inputs get a correct checksum, or none would come past it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchlib.arguments import at_least_one

try:
    import atheris
except ImportError:
    sys.exit("fuzzing needs atheris: pip install atheris")

with atheris.instrument_imports(include=["pd", "kvstore"]):
    import xxhash

    from kvstore.layout import KVLayout
    from kvstore.pool.disk_format import HEADER_BYTES, Header, HeaderFormat
    from kvstore.transport import inbox
    from pd import wire
    from pd.errors import TransferError, WireError
    from pd.messages import BlockEvents, Fetch, Peers, PrefillDone, Put, Stopped
    from pd.types import Peer

CLUSTER = 1
MEMORY_MIB = 1024
# Then a new process goes on with what was found: of each comparison of arrays that atheris traces
# it keeps some 600 bytes, which the same inputs without its tracing do not.
RUNS_A_PROCESS = 500_000
# Where a frame's header has them, little-endian.
KIND, BODY_LENGTH, CHECKSUM = slice(6, 8), slice(-20, -16), slice(-8, None)


def sealed(codec: wire.Codec, template: object, data: bytes) -> bytes:
    """A frame with two bytes of `data` as its kind and the rest as its body, as if encoded."""
    (frame,) = codec.encode(template, cluster_id=CLUSTER, sender="a")
    header, body = bytearray(frame[: wire.HEADER_BYTES]), data[2:]
    kinds = sorted(codec.kinds)
    header[KIND] = kinds[int.from_bytes(data[:2], "little") % len(kinds)].to_bytes(2, "little")
    header[BODY_LENGTH] = len(body).to_bytes(4, "little")
    checksum = xxhash.xxh3_64_intdigest(bytes(header[:-8]) + body)
    header[CHECKSUM] = checksum.to_bytes(8, "little")
    return bytes(header) + body


def frames(codec: wire.Codec, template: object) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        if not data:
            return
        frame = sealed(codec, template, data[1:]) if data[0] % 2 else data[1:]
        try:
            _, message = codec.decode([frame], cluster_id=CLUSTER, max_body=1 << 16)
        except WireError:
            return
        (again,) = codec.encode(message, cluster_id=CLUSTER, sender="a")
        _, same = codec.decode([again], cluster_id=CLUSTER, max_body=1 << 20)
        # Compared as bytes: a message may have a NaN.
        assert codec.encode(same, cluster_id=CLUSTER, sender="a") == [again], message

    return run


def disk(data: bytes) -> None:
    form = HeaderFormat(fingerprint=1, payload_bytes=64)
    if data[:1] and data[0] % 2:
        body = data[1 : HEADER_BYTES - 7].ljust(HEADER_BYTES - 8, b"\0")
        data = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    header = form.parse(data.ljust(HEADER_BYTES, b"\0")[:HEADER_BYTES])
    assert header is None or form.parse(form.pack(header)) == header
    table = data[: len(data) // HEADER_BYTES * HEADER_BYTES]
    found = form.scan(table, checked_only=False)
    assert len(found.slots) <= len(table) // HEADER_BYTES


def layout(data: bytes) -> None:
    try:
        found = KVLayout.parse(data.decode("utf-8", "replace"))
    except TransferError:
        return
    assert KVLayout.parse(found.describe()) == found


def example(codec: wire.Codec, message: object) -> bytes:
    """The input of which `frames` makes this message."""
    (frame,) = codec.encode(message, cluster_id=CLUSTER, sender="a")
    at = sorted(codec.kinds).index(int.from_bytes(bytes(frame[KIND]), "little"))
    return b"\1" + at.to_bytes(2, "little") + bytes(frame[wire.HEADER_BYTES :])


MESSAGES = (
    Stopped(1), PrefillDone(1, ((0, 5), (1, 7))), Fetch(1, 2, b"k" * 64, (3, 4)),
    BlockEvents(1, True, "dram", b"s" * 16, b"r" * 8), Put(2, 3, b"k" * 32),
    Peers((Peer("a", 1, {"control": "tcp://127.0.0.1:1"}),)),
)  # fmt: skip
LAYOUT = KVLayout("float32", 30, 3, 64, 16, "model")

# What runs an input, and inputs to begin with.
DECODERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "control": (
        frames(wire.CONTROL, Stopped(1)),
        [example(wire.CONTROL, message) for message in MESSAGES],
    ),
    "blocks": (
        frames(inbox.CODEC, inbox.Landed(1, True)),
        [
            example(inbox.CODEC, message)
            for message in (inbox.Landed(1, True), inbox.Blocks(0, 1, 2))
        ],
    ),
    "disk": (disk, [b"\1" + HeaderFormat(1, 64).pack(Header(b"k" * 32, 5, 6))]),
    "layout": (layout, [LAYOUT.describe().encode()]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=at_least_one, default=2_000_000, help="executions of each decoder"
    )
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=list(DECODERS))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    survived = [fuzz(name, args.runs, args.seed) for name in args.decoders]
    return int(not all(survived))


def fuzz(name: str, runs: int, seed: int) -> bool:
    """Whether the decoder survived so many inputs."""
    begun = time.monotonic()
    flags = [f"-rss_limit_mb={MEMORY_MIB}", "-max_len=4096", "-timeout=10", "-verbosity=1"]
    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(DECODERS[name][1]):
            (Path(corpus) / str(i)).write_bytes(data)
        for start in range(0, runs, RUNS_A_PROCESS):
            part = min(RUNS_A_PROCESS, runs - start)
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, f"-runs={part}", f"-seed={seed + start}",
                 *flags, corpus],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            if done.returncode:
                print(f"{name}: failed after {start:,} runs")
                print(done.stderr[-4000:], flush=True)
                return False
    last = " ".join(re.findall(r"^#\d+\s+DONE.*", done.stderr, re.M))
    seconds = time.monotonic() - begun
    print(f"{name}: {runs:,} runs in {seconds:.0f} s, at the end {last}", flush=True)
    return True


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run, _ = DECODERS[sys.argv[2]]
        atheris.Setup([sys.argv[0], *sys.argv[3:]], run)
        atheris.Fuzz()
    else:
        sys.exit(main())
