"""Whether what passed between hosts can be read: KV that both now have, against the recording."""

from __future__ import annotations

import random
from pathlib import Path

from hostlib.hosts import Host

_PIECE = 64  # bytes: 16 numbers, which are nowhere else by chance
_TRIES = 20_000
_HEADER = b"pdKV\x01\x00"  # of every message of the protocol


def shared_pieces(first: Host, second: Host, count: int, seed: int = 0) -> list[bytes]:
    """Pieces of KV that lie in memory on both hosts: they have been moved."""
    sources = [path.read_bytes() for path in segments(first)]
    rng = random.Random(seed)
    found: list[bytes] = []
    for path in segments(second):
        memory = path.read_bytes()
        for _ in range(_TRIES):
            at = rng.randrange(len(memory) // _PIECE) * _PIECE
            piece = memory[at : at + _PIECE]
            if len(set(piece)) >= _PIECE // 2 and any(piece in source for source in sources):
                found.append(piece)
                if len(found) == count:
                    return found
    return found


def readable(recording: Path, pieces: list[bytes]) -> list[str]:
    """What an eavesdropper would have recognised."""
    passed = recording.read_bytes()
    seen = [f"{piece[:8].hex()}..." for piece in pieces if piece in passed]
    if _HEADER in passed:
        seen.append("the header of a message")
    return seen


def segments(host: Host) -> list[Path]:
    """The KV memory that processes of this host share."""
    return sorted(host.path("/dev/shm").glob("pd-kv-*"))
