"""How fast KV blocks move: every transport against a plain copy and against raw ZeroMQ.

    python scripts/bench_transfer.py [--blocks 128] [--rounds 9] [--json benchmarks/transfer.json]

Sender and receiver are two processes, as in a cell. A transfer counts from the push until
the receiver has verified every block and said so. All candidates take turns in every round,
so that whatever else the machine does hits each of them alike; reported is the median, and the
processor time that both processes took together. The copy is one thread's, between two arenas
in shared memory. Raw ZeroMQ sends frames as long as the zmq transport's, without a copy, and its
receiver neither puts the bytes anywhere nor looks at them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import zmq
from benchlib.environment import environment
from benchlib.report import write_json
from rich.console import Console
from rich.table import Table

from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.transfer import Push
from kvstore.transport.base import TransportSettings
from kvstore.transport.hub import TransportHub
from pd.sockets import CurveKeys
from pd.types import Peer

CLUSTER = 1
SMOLLM2 = KVLayout("float32", 30, 3, 64, 16, "smollm2-135m")
FRAME_BYTES = 4 << 20  # as the zmq transport sends them
TRANSPORTS = ("inproc", "shm", "zmq", "torch", "nixl")
COPY, RAW = "memory copy", "raw ZeroMQ"
Run = Callable[[int], float]  # number of blocks -> seconds


class End:
    """One end of a bench: an arena and a hub whose events are waited for."""

    def __init__(
        self, name: str, epoch: int, num_blocks: int, transport: str, verify: bool, secret: bool
    ) -> None:
        self.arena = KVArena(SMOLLM2, num_blocks, shared=True)
        self.arena.blocks[:] = epoch  # touched, as the arena of a node that has run for a while
        self.ready = threading.Event()
        self.hub = TransportHub(
            name, CLUSTER, self.arena, transports=[transport],
            settings=TransportSettings(verify=verify, keys=keys() if secret else None),
            on_event=self.ready.set,
        )  # fmt: skip
        self.hub.epoch = epoch

    def close(self) -> None:
        self.hub.close()
        self.arena.close()


def keys() -> CurveKeys:
    return CurveKeys.derive("bench", CLUSTER)


def receive(transport: str, verify: bool, num_blocks: int, rounds: int, secret: bool) -> None:
    """The other process: takes every transfer it is sent until its input ends."""
    if transport in ("raw", "raw, stored"):
        receive_raw(secret, num_blocks if transport != "raw" else 0)
        return
    end = End("receiver", 2, num_blocks, transport, verify, secret)
    for transfer_id in range(2 * rounds):
        end.hub.expect(transfer_id, "sender", 1, range(num_blocks))
    print(json.dumps(end.hub.endpoints()), flush=True)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set(), end.ready.set())).start()
    while not done.is_set():
        end.ready.wait()
        end.ready.clear()
        end.hub.poll()
    end.close()


def receive_raw(secret: bool, num_pages: int) -> None:
    """Plain ZeroMQ: take messages, answer the one that is marked as last. With pages, what comes
    is copied into them, which ZeroMQ cannot do by itself: it receives into memory of its own."""
    pages = np.ones((num_pages, SMOLLM2.block_bytes), np.uint8).reshape(-1)
    at = 0
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    data, answers = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    data.rcvhwm = 2
    if secret:
        data.curve_publickey, data.curve_secretkey = keys().public, keys().secret
        data.curve_server = True
    ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (data, answers)]
    print(json.dumps(ports), flush=True)
    while True:
        mark, *parts = data.recv_multipart(copy=False)
        if num_pages:
            for part in parts:
                pages[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
            at = 0 if mark.bytes == b"last" else at
        if mark.bytes == b"last":
            answers.send(b"")
        elif mark.bytes == b"end":
            break
    for socket in (data, answers):
        socket.close(linger=0)
    context.term()


class Child:
    def __init__(
        self, transport: str, verify: bool, num_blocks: int, rounds: int, secret: bool
    ) -> None:
        command = [sys.executable, __file__, "--receive", transport, "--blocks", str(num_blocks),
                   "--rounds", str(rounds)]  # fmt: skip
        self.process = subprocess.Popen(
            command + ["--no-verify"] * (not verify) + ["--secret"] * secret,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        self.said = json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@dataclass
class Candidate:
    """A way to move blocks; `pids` are the processes that have a part in it."""

    name: str
    run: Run
    close: Callable[[], None]
    pids: tuple[int, ...]


def transport(
    name: str, verify: bool, num_blocks: int, rounds: int, secret: bool = False
) -> Candidate:
    sender = End("sender", 1, num_blocks, name, verify, secret)
    pids: tuple[int, ...] = (os.getpid(),)
    if name == "inproc":
        receiver = End("receiver", 2, num_blocks, name, verify, secret)
        for transfer_id in range(2 * rounds):
            receiver.hub.expect(transfer_id, "sender", 1, range(num_blocks))
        endpoints, close_receiver = receiver.hub.endpoints(), receiver.close
    else:
        child = Child(name, verify, num_blocks, rounds, secret)
        endpoints, close_receiver = child.said, child.close
        pids += (child.process.pid,)
    sender.hub.connect(Peer("receiver", 2, endpoints))
    transfers = iter(range(2 * rounds))

    def run(count: int) -> float:
        blocks = tuple(range(count))
        job = Push(next(transfers), "receiver", 2, 0, blocks, blocks)
        begun = time.perf_counter()
        sender.hub.push(job)
        while not (events := sender.hub.poll()):
            sender.ready.wait()
            sender.ready.clear()
        seconds = time.perf_counter() - begun
        assert len(events) == 1 and events[0].ok, events
        return seconds

    def close() -> None:
        sender.close()
        close_receiver()

    label = name + (", encrypted" if secret else "") + ("" if verify else ", no checksums")
    return Candidate(label, run, close, pids)


def raw_zmq(num_blocks: int, rounds: int, secret: bool = False, stored: bool = False) -> Candidate:
    """The same bytes in messages as the zmq transport's, zero-copy, with nothing of ours. `stored`
    says whether the receiver copies them to where they are wanted."""
    child = Child("raw, stored" if stored else "raw", True, num_blocks, rounds, secret)
    blocks = np.ones((num_blocks, SMOLLM2.block_bytes), np.uint8)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    data, answers = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    if secret:
        data.curve_publickey, data.curve_secretkey = keys().public, keys().secret
        data.curve_serverkey = keys().public
    data.connect(f"tcp://127.0.0.1:{child.said[0]}")
    answers.connect(f"tcp://127.0.0.1:{child.said[1]}")
    step = max(1, FRAME_BYTES // SMOLLM2.block_bytes)

    def run(count: int) -> float:
        begun = time.perf_counter()
        for at in range(0, count, step):
            end = min(count, at + step)
            mark = b"last" if end == count else b"more"
            data.send_multipart([mark, blocks[at:end].data], copy=False)
        answers.recv()
        return time.perf_counter() - begun

    def close() -> None:
        data.send(b"end")
        data.close(linger=1000)
        answers.close(linger=0)
        context.term()
        child.close()

    name = RAW + (", encrypted" if secret else "") + (", stored" if stored else "")
    return Candidate(name, run, close, (os.getpid(), child.process.pid))


def memory_copy(num_blocks: int, shared: bool) -> Candidate:
    source, target = (KVArena(SMOLLM2, num_blocks, shared=shared) for _ in range(2))
    source.blocks[:], target.blocks[:] = 1, 2

    def run(count: int) -> float:
        begun = time.perf_counter()
        target.blocks[:count] = source.blocks[:count]
        return time.perf_counter() - begun

    def close() -> None:
        source.close()
        target.close()

    return Candidate(COPY if shared else f"{COPY}, private memory", run, close, (os.getpid(),))


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """Processor time that all threads of these processes have had so far."""
    # What clock_getcpuclockid(3) makes of a process id on Linux.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def measure(names: Sequence[str], num_blocks: int, rounds: int) -> list[dict[str, object]]:
    candidates = [
        memory_copy(num_blocks, shared=True),
        memory_copy(num_blocks, shared=False),
        raw_zmq(num_blocks, rounds),
        raw_zmq(num_blocks, rounds, stored=True),
        *(transport(name, ok, num_blocks, rounds) for name in names for ok in (True, False)),
    ]
    if "zmq" in names:
        candidates += [
            raw_zmq(num_blocks, rounds, secret=True),
            transport("zmq", True, num_blocks, rounds, secret=True),
        ]
    rows: list[dict[str, object]] = []
    try:
        times: dict[tuple[str, int], list[float]] = {}
        cpu: dict[tuple[str, int], list[float]] = {}
        for turn in range(rounds):
            for candidate in candidates:
                for count in (1, num_blocks):
                    before = cpu_seconds(candidate.pids)
                    seconds = candidate.run(count)
                    if turn:  # the first one connects and touches pages
                        key = candidate.name, count
                        times.setdefault(key, []).append(seconds)
                        cpu.setdefault(key, []).append(cpu_seconds(candidate.pids) - before)
    finally:
        for candidate in candidates:
            candidate.close()
    for (name, count), seconds in times.items():
        middle = statistics.median(seconds)
        num_bytes = count * SMOLLM2.block_bytes
        rows.append(
            {
                "what": name, "blocks": count, "bytes": num_bytes, "median_s": middle,
                "best_s": min(seconds), "gb_per_s": num_bytes / middle / 1e9,
                "cpu_s": statistics.median(cpu[name, count]),
            }
        )  # fmt: skip
    for row in rows:
        raw = f"{RAW}, encrypted" if "encrypted" in str(row["what"]) else RAW
        for key, base in (("vs_copy", COPY), ("vs_zmq", raw)):
            (other,) = (
                r["gb_per_s"] for r in rows if r["what"] == base and r["blocks"] == row["blocks"]
            )
            row[key] = row["gb_per_s"] / other
    return rows


def show(rows: list[dict[str, object]]) -> None:
    table = Table(title="KV blocks of SmolLM2-135M, fp32, 16 tokens (737,280 bytes)")
    for heading in (
        "", "blocks", "median, ms", "GB/s", "best GB/s", "CPU, ms", "of a copy", "of raw ZeroMQ",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if not heading else "right")
    for row in sorted(rows, key=lambda row: row["blocks"]):
        table.add_row(
            str(row["what"]), str(row["blocks"]), f"{row['median_s'] * 1e3:.2f}",
            f"{row['gb_per_s']:.2f}", f"{row['bytes'] / row['best_s'] / 1e9:.2f}",
            f"{row['cpu_s'] * 1e3:.2f}", f"{row['vs_copy']:.2f}", f"{row['vs_zmq']:.2f}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=128, help="blocks of a long transfer")
    parser.add_argument("--rounds", type=int, default=9, help="rounds; the first does not count")
    parser.add_argument(
        "--transports", nargs="+", choices=TRANSPORTS, help="default: all that are installed",
        default=[name for name in TRANSPORTS if name != "nixl" or find_spec("nixl")],
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=Path("benchmarks/transfer.json"))
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--no-verify", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--secret", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.blocks < 2 or arguments.rounds < 2:
        parser.error("at least 2 blocks and 2 rounds are needed")
    if arguments.receive:
        receive(
            arguments.receive, not arguments.no_verify, arguments.blocks, arguments.rounds,
            arguments.secret,
        )  # fmt: skip
        return
    facts = environment()
    rows = measure(arguments.transports, arguments.blocks, arguments.rounds)
    show(rows)
    record = {
        "environment": facts,
        "block_bytes": SMOLLM2.block_bytes,
        "rounds": arguments.rounds - 1,
        "rows": rows,
    }
    write_json(arguments.json, record)


if __name__ == "__main__":
    main()
