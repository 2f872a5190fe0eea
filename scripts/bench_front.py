"""What a token costs between a decode step and the HTTP byte.

Three processes, as in a real cell: one plays coordinator and decode node and sends a `Tokens`
message a step over ZeroMQ, one is the gateway, one reads the event streams from raw sockets.
Measured are the CPU time of the gateway and of the node's sending, per token; the delay from
a step to the client's read; and with a node that sends as fast as it can, tokens per second.

    python scripts/bench_front.py [--model DIR] [--streams 1 32 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import selectors
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tokenizers
import uvloop
from benchlib.environment import environment
from benchlib.report import options_of, write_json

from pd.gateway.limits import Limits
from pd.gateway.server import GatewayOptions, GatewayServer
from pd.gateway.tracing import TraceOptions
from pd.mailbox import AsyncMailbox, Mailbox
from pd.messages import (
    COORDINATOR,
    Admitted,
    CellStatus,
    GatewayHello,
    Heartbeat,
    Submit,
    Tokens,
    Welcome,
)  # fmt: skip
from pd.types import Peer, TokenEvent

CLUSTER = 0xBE4C
NODE = "decode-0"
TEXT = "The decode node writes one token of every running answer in each of its steps. " * 40


# ---------------------------------------------------------------------- the cell
class Cell:
    """Coordinator and decode node: waits for `streams` requests, then steps them together."""

    def __init__(self) -> None:
        self.coordinator = Mailbox(COORDINATOR, CLUSTER)
        self.node = Mailbox(NODE, CLUSTER)
        self.coordinator.epoch, self.node.epoch = 1, 2
        self.gateway = ""

    def serve_until(self, streams: int) -> list[Submit]:
        """Answer the gateway until that many requests have come."""
        submits: list[Submit] = []
        while len(submits) < streams or not self.gateway:
            received = self.coordinator.recv(0.1)
            if received is None:
                continue
            message = received[1]
            if isinstance(message, GatewayHello):
                self.gateway = message.gateway_id
                # Not yet welcomed, so not yet addressed by its epoch.
                self.coordinator.connect(Peer(self.gateway, 0, message.endpoints))
                self.coordinator.send(self.gateway, Welcome(self.gateway, message.incarnation, 3))
                for mailbox in (self.coordinator, self.node):
                    mailbox.connect(Peer(self.gateway, 3, message.endpoints))
                self.coordinator.send(self.gateway, CellStatus(True, "", ()))
                if not streams:
                    break
            elif isinstance(message, Submit):
                request_id, work = message.work.request.request_id, message.work
                admitted = Admitted(request_id, work.indices, work.attempt, NODE, NODE)
                self.coordinator.send(self.gateway, admitted)
                submits.append(message)
            elif not isinstance(message, Heartbeat):
                continue
        return submits

    def run(self, streams: int, tokens: int, step_s: float, script: list[int]) -> dict[str, Any]:
        ids = [submit.work.request.request_id for submit in self.serve_until(streams)]
        sent_s, cpu_s, refused = [], 0.0, 0
        next_s = time.monotonic() + 0.2
        for position in range(tokens):
            while (wait_s := next_s - time.monotonic()) > 0:
                time.sleep(wait_s)
            next_s = max(next_s + step_s, time.monotonic() - step_s)
            finish = "length" if position + 1 == tokens else None
            token = script[position % len(script)]
            sent_s.append(time.monotonic())
            before = time.process_time()
            events = [TokenEvent(each, 0, 0, position, token, finish) for each in ids]
            message = Tokens.pack(events, NODE)
            while not self.node.send(self.gateway, message):
                refused += 1
                time.sleep(0.001)
            cpu_s += time.process_time() - before
        return {"sent_s": sent_s, "cpu_s": cpu_s, "refused": refused}


def cell_main(pipe: Connection, script: list[int]) -> None:
    cell = Cell()
    pipe.send(cell.coordinator.endpoint)
    cell.serve_until(0)
    while (job := pipe.recv()) is not None:
        pipe.send(cell.run(**job, script=script))
    cell.coordinator.close()
    cell.node.close()


# ---------------------------------------------------------------------- the gateway
def gateway_main(
    pipe: Connection, model_dir: str, coordinator: str, trace: TraceOptions | None = None
) -> None:
    """Serves until None comes through the pipe; answers everything else with its CPU time."""

    async def main() -> None:
        options = GatewayOptions(
            model_dir, model_name="bench", port=0, drain_s=0.0,
            limits=Limits(max_model_len=100_000), trace=trace or TraceOptions(),
        )  # fmt: skip
        mailbox = AsyncMailbox(options.gateway_id, CLUSTER)
        server = GatewayServer(options, mailbox, Peer(COORDINATOR, 1, {"control": coordinator}))
        serving = asyncio.create_task(server.serve())
        while not server.link.readiness()[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pipe.send(server.port)
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        loop.add_reader(pipe.fileno(), asked.set)
        while True:
            await asked.wait()
            asked.clear()
            if pipe.recv() is None:
                break
            pipe.send(time.process_time())
        loop.remove_reader(pipe.fileno())
        await server.shutdown()
        await serving

    uvloop.run(main())


# ---------------------------------------------------------------------- the clients
class Reader:
    """One client: counts the events of its stream and remembers when each came."""

    def __init__(self, port: int, tokens: int, more: dict[str, Any]) -> None:
        body = json.dumps(
            {"prompt": "hi", "max_tokens": tokens, "ignore_eos": True, "stream": True, **more}
        ).encode()
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: "
            + str(len(body)).encode() + b"\r\n\r\n" + body
        )  # fmt: skip
        self.socket.setblocking(False)
        self.arrived_s: list[float] = []
        self._tail = b""
        self.done = False

    def read(self) -> None:
        data = self._tail + self.socket.recv(1 << 20)
        now = time.monotonic()
        self.arrived_s += [now] * data.count(b'data: {"id"')
        self.done = b"[DONE]" in data
        self._tail = data[data.rfind(b"\n") + 1 :]  # never a whole event


def read_all(port: int, streams: int, tokens: int, more: dict[str, Any]) -> list[Reader]:
    selector = selectors.DefaultSelector()
    readers = [Reader(port, tokens, more) for _ in range(streams)]
    for reader in readers:
        selector.register(reader.socket, selectors.EVENT_READ, reader)
    running = streams
    while running:
        for key, _ in selector.select(60.0):
            key.data.read()
            if key.data.done:
                selector.unregister(key.fileobj)
                running -= 1
    for reader in readers:
        reader.socket.close()
        if len(reader.arrived_s) != tokens:
            raise SystemExit(f"a stream had {len(reader.arrived_s)} events, not {tokens}")
    return readers


# ---------------------------------------------------------------------- one measurement
def measure(
    cell: Connection,
    gateway: Connection,
    port: int,
    streams: int,
    tokens: int,
    step_s: float,
    **more: Any,
) -> dict[str, Any]:
    """`more` goes into the body of every request."""
    cell.send({"streams": streams, "tokens": tokens, "step_s": step_s})
    gateway.send("cpu")
    before_s: float = gateway.recv()
    readers = read_all(port, streams, tokens, more)
    gateway.send("cpu")
    gateway_s = gateway.recv() - before_s
    sent = cell.recv()
    delays = sorted(
        arrived - step
        for reader in readers
        for arrived, step in zip(reader.arrived_s, sent["sent_s"], strict=True)
    )
    first, last = sent["sent_s"][0], max(reader.arrived_s[-1] for reader in readers)
    total = streams * tokens
    return {
        "streams": streams,
        "tokens_per_stream": tokens,
        "step_s": step_s,
        "gateway_cpu_us_per_token": round(gateway_s / total * 1e6, 2),
        "node_send_cpu_us_per_token": round(sent["cpu_s"] / total * 1e6, 2),
        "tokens_per_s": round(total / (last - first)),
        "delay_p50_ms": round(statistics.median(delays) * 1e3, 3),
        "delay_p99_ms": round(delays[int(0.99 * (len(delays) - 1))] * 1e3, 3),
    }


def write_model(directory: Path) -> Path:
    """A byte-level tokenizer trained on a few sentences, and a config to go with it."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 1 << 20,
        "vocab_size": tokenizer.get_vocab_size(), "tie_word_embeddings": True,
        "model_type": "llama", "eos_token_id": 0, "torch_dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="directory with a tokenizer; default: a small one")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a paced run")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/front.json"))
    options = parser.parse_args()
    facts = environment()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        model_dir = options.model or str(write_model(Path(temporary)))
        script = tokenizers.Tokenizer.from_file(f"{model_dir}/tokenizer.json").encode(TEXT).ids
        cell, cell_end = spawn.Pipe()
        gateway, gateway_end = spawn.Pipe()
        processes = [spawn.Process(target=cell_main, args=(cell_end, script))]
        processes[0].start()
        endpoint = cell.recv()
        processes.append(
            spawn.Process(target=gateway_main, args=(gateway_end, model_dir, endpoint))
        )
        processes[1].start()
        try:
            port = gateway.recv()
            measure(cell, gateway, port, 8, 50, 0.002)  # warm up
            runs = []
            for streams in options.streams:
                # A step as long as a decode step of such a batch might take.
                step_s = 0.002 + streams * 0.00015
                tokens = int(options.seconds / step_s)
                runs.append(measure(cell, gateway, port, streams, tokens, step_s))
                _show("paced", runs[-1])
            most = max(options.streams)
            runs.append(measure(cell, gateway, port, most, max(200, 51_200 // most), 0.0))
            _show("full speed", runs[-1])
        finally:
            for pipe in (cell, gateway):
                pipe.send(None)
            for process in processes:
                process.join(20)
    write_json(options.json, {"environment": facts, "options": options_of(options), "runs": runs})


def _show(kind: str, run: dict[str, Any]) -> None:
    print(
        f"{run['streams']:4} streams, {kind:10}: "
        f"gateway {run['gateway_cpu_us_per_token']:6.1f} us, "
        f"node {run['node_send_cpu_us_per_token']:5.1f} us CPU a token; "
        f"{run['tokens_per_s']:7} tokens/s; delay p50 {run['delay_p50_ms']:.2f} ms, "
        f"p99 {run['delay_p99_ms']:.2f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
