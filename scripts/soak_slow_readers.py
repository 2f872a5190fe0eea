#!/usr/bin/env python3
"""Two hundred clients that read one byte a second: the gateway's memory, and others' streams.

    python scripts/soak_slow_readers.py --json benchmarks/soak_slow_readers.json

The gateway is the real one, over real sockets, in a process of its own; the cell behind it writes
every stream at the same even pace. A few clients read their streams as they come and time the
gaps between events, first beside as many clients that read at once as there are slow ones later,
then beside the slow ones, several rounds of it: what is compared is how clients read, not how many
there are. The slow ones must be cut off in time, the memory of the process and of its sockets must
be bounded, and the p99 of the others' gaps within 10 % in the median round. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import options_of, percentile, write_json  # noqa: E402

MIB = 1 << 20
_EVENT = b'data: {"id"'
_FOREVER = 10_000_000  # tokens
_NAME = "m" * 1000  # every event has it: buffers fill without many events
_LONGER = 1.1  # what the p99 may be
# Of a slow client: what gateway and kernel keep (docs/operations.md), and some for its tokens.
_BOUND_BYTES = 64 * 1024 + 256 * 1024 + 256 * 1024


def main() -> int:
    args = _arguments()
    if args.serve:
        asyncio.run(_serve(args))
        return 0
    report = environment()
    served = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--step-ms", str(args.step_ms),
         "--write-timeout-s", str(args.write_timeout_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert served.stdout is not None and served.stdin is not None
    try:
        port = int(served.stdout.readline())
        figures = Soak(args, port, psutil.Process(served.pid)).run()
    finally:
        served.stdin.close()  # it ends with it
        served.wait(timeout=30)
        served.stdout.close()
    for number, each in enumerate(figures["rounds"], 1):
        print(f"round {number}: {each}")
    print(f"p99 {figures['gap_p99_ratio']:.2f} times as long, {figures['grown_mib']:.0f} MiB more")
    problems = figures["problems"]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if args.json:
        write_json(
            args.json,
            {"environment": report, "options": options_of(args, "serve"), **figures},
        )
    return 1 if problems else 0


class Soak:
    def __init__(self, args: argparse.Namespace, port: int, server: psutil.Process) -> None:
        self.args, self.port, self.server = args, port, server
        self.selector = selectors.DefaultSelector()
        self.timed = [_ask(port, n=1) for _ in range(args.timed)]
        self.last = dict.fromkeys(self.timed, 0.0)
        self.peaks, self.kernel_peaks = [0], [0]

    def run(self) -> dict[str, Any]:
        for each in self.timed:
            self.selector.register(each, selectors.EVENT_READ, "timed")
        rounds = [self._round() for _ in range(self.args.rounds)]
        for each in self.timed:
            each.close()
        ratio = median(each["gap_p99_ratio"] for each in rounds)
        grown = max(each["grown_mib"] for each in rounds)
        kept = sum(each["slow_clients"] - each["cut_off"] for each in rounds)
        problems = []
        if ratio > _LONGER:
            problems.append(f"the others' p99 is {ratio:.2f} times what it was")
        if grown * MIB > self.args.clients * _BOUND_BYTES:
            problems.append(f"{grown:.0f} MiB for {self.args.clients} clients that do not read")
        if kept:
            problems.append(f"{kept} slow clients were not cut off")
        return {
            "gap_p99_ratio": ratio, "grown_mib": grown, "rounds": rounds, "problems": problems
        }  # fmt: skip

    def _round(self) -> dict[str, Any]:
        """Beside clients that read at once, then beside as many that do not. What it takes to let
        either in does not count."""
        args = self.args
        fast = [_ask(self.port, n=args.n) for _ in range(args.clients)]
        for each in fast:
            self.selector.register(each, selectors.EVENT_READ, "fast")
        self._read(args.warm_s)
        before, kernel_before = self.server.memory_info().rss, _kernel_bytes()
        beside_fast = self._read(args.fast_s)
        for each in fast:
            self.selector.unregister(each)
            each.close()
        self.peaks, self.kernel_peaks = [0], [0]
        slow = [_ask(self.port, n=args.n, receive_buffer=4096) for _ in range(args.clients)]
        self._read(args.warm_s, slow)
        beside_slow = self._read(args.slow_s, slow)
        cut = sum(_gone(each) for each in slow)
        for each in slow:
            each.close()
        peak, kernel_peak = max(self.peaks), max(self.kernel_peaks)
        p99_fast, p99_slow = percentile(beside_fast, 0.99), percentile(beside_slow, 0.99)
        return {
            "gap_p99_ratio": p99_slow / p99_fast,
            "gap_p99_ms_beside_fast": p99_fast * 1e3,
            "gap_p99_ms_beside_slow": p99_slow * 1e3,
            "gap_p50_ms_beside_fast": percentile(beside_fast, 0.5) * 1e3,
            "gap_p50_ms_beside_slow": percentile(beside_slow, 0.5) * 1e3,
            "events_beside_fast": len(beside_fast),
            "events_beside_slow": len(beside_slow),
            "slow_clients": len(slow),
            "cut_off": cut,
            "rss_mib_before": before / MIB,
            "rss_mib_peak": peak / MIB,
            "kernel_socket_mib_before": kernel_before / MIB,
            "kernel_socket_mib_peak": kernel_peak / MIB,
            "grown_mib": (peak - before + kernel_peak - kernel_before) / MIB,
        }

    def _read(self, seconds: float, slow: list[socket.socket] | None = None) -> list[float]:
        """Read for so long; the gaps between events of the timed streams. A slow client reads a
        byte each second."""
        gaps: list[float] = []
        waiting, began = list(slow or ()), time.monotonic()
        ends, looks, turn = began + seconds, began, 0
        while (now := time.monotonic()) < ends:
            if now >= looks:
                looks += 1.0
                self.peaks.append(self.server.memory_info().rss)
                self.kernel_peaks.append(_kernel_bytes())
            # Spread over the second.
            due = int((now - began) * len(waiting)) if waiting else 0
            for _ in range(min(due - turn, len(waiting))):
                _read_byte(waiting[turn % len(waiting)])
                turn += 1
            for key, _ in self.selector.select(0.005):
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                now = time.monotonic()
                if key.data == "timed":
                    count = data.count(_EVENT)
                    last = self.last[key.fileobj]  # type: ignore[index]
                    if count and last:
                        gaps += [now - last, *([0.0] * (count - 1))]
                    if count:
                        self.last[key.fileobj] = now  # type: ignore[index]
                assert data, "a stream of a client that reads has ended"
        return gaps


def _ask(port: int, *, n: int, receive_buffer: int | None = None) -> socket.socket:
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.connect(("127.0.0.1", port))
    body = {"prompt": "hi", "stream": True, "n": n, "max_tokens": _FOREVER, "ignore_eos": True}
    data = json.dumps(body).encode()
    raw.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(data)).encode() + b"\r\n\r\n" + data
    )
    raw.setblocking(False)
    return raw


def _read_byte(raw: socket.socket) -> None:
    with suppress(OSError):  # nothing there, or cut off
        raw.recv(1)


def _gone(raw: socket.socket) -> bool:
    """Whether the server has closed it: everything that came before is read first."""
    try:
        while raw.recv(1 << 16):
            continue
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _kernel_bytes() -> int:
    """What all TCP sockets of the machine keep, as the kernel counts it."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        words = line.split()
        if words[0] == "TCP:":
            return int(words[words.index("mem") + 1]) * 4096
    return 0


async def _serve(args: argparse.Namespace) -> None:
    """A gateway over a cell that writes evenly, until standard input ends."""
    from fake_cell import FakeCell, text_tokens
    from text_model import write_text_model

    from pd.gateway.server import GatewayOptions, GatewayServer
    from pd.messages import COORDINATOR
    from pd.types import Peer

    with tempfile.TemporaryDirectory(prefix="slow-readers-") as directory:
        model = write_text_model(Path(directory) / "model", max_positions=2 * _FOREVER)
        cell = FakeCell()
        cell.step_s = args.step_ms / 1e3
        cell.script = lambda request, index: text_tokens("x" * 1000)[:-1]
        options = GatewayOptions(
            model, model_name=_NAME, port=0, write_timeout_s=args.write_timeout_s, drain_s=0.0
        )
        server = GatewayServer(options, cell, Peer(COORDINATOR, 1))
        serving = asyncio.create_task(server.serve())
        while not server.link.readiness()[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.shutdown()
        await serving


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=200, help="that read one byte a second")
    parser.add_argument("--n", type=int, default=1, help="outputs of each of their requests")
    parser.add_argument("--timed", type=int, default=8, help="clients whose gaps are timed")
    parser.add_argument("--step-ms", type=float, default=100.0, help="between tokens of a stream")
    parser.add_argument("--write-timeout-s", type=float, default=10.0)
    parser.add_argument("--warm-s", type=float, default=3.0)
    parser.add_argument("--fast-s", type=float, default=15.0)
    parser.add_argument("--slow-s", type=float, default=60.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="the ratio is their median")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
