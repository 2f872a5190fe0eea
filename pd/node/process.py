"""Everything one node process holds, put together: engine, arena, pool, sockets, loop."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.arena import KVArena
from kvstore.blocklog import BlockLog
from kvstore.blocks import BlockPool
from kvstore.layout import KVLayout
from kvstore.transport.hub import TransportHub
from pd.config import Config, Device
from pd.cost.sweep import first_points
from pd.limits import node_limits
from pd.mailbox import Mailbox
from pd.messages import NodeHello
from pd.node.blockmover import BlockMover, DeviceBlockMover
from pd.node.compute import ComputeThread
from pd.node.core import NodeCore
from pd.node.cores import CoreClaim
from pd.node.runner import NodeRunner
from pd.node.transports import make_hub
from pd.types import Peer, Role, StepTime

if TYPE_CHECKING:
    from pd.engine.engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeLaunch:
    """What a node process is told when it is started."""

    node_id: str
    role: Role
    cluster_id: int
    coordinator: Peer
    config: Config
    threads: int
    secret: str | None = None


class NodeProcess:
    """Loads, joins, serves. `run` returns after `stop`, or raises why the node ended."""

    def __init__(self, launch: NodeLaunch) -> None:
        self.launch = launch
        self.incarnation = time.time_ns()
        self._arena: KVArena | None = None
        config = launch.config
        self._mailbox = Mailbox(
            launch.node_id,
            launch.cluster_id,
            bind=f"tcp://{config.cluster.bind}:*",
            secret=launch.secret,
            max_message_bytes=config.transfer.max_message_bytes,
        )
        self._prefill_rate = 0.0
        self._steps: tuple[StepTime, ...] = ()
        self._runner: NodeRunner | None = None
        self._cores: CoreClaim | None = None
        self._stopped = False
        self.compute = ComputeThread(self._load, self._mailbox.wake)

    def stop(self) -> None:
        """From any thread: end the loop; blocks and sockets go with it."""
        self._stopped = True
        if self._runner is not None:
            self._runner.stop()

    def layout(self) -> KVLayout:
        """The shape of this node's blocks. Waits until the model is loaded."""
        layout: KVLayout = self.compute.loaded.result().layout
        return layout

    def run(self) -> None:
        hub: TransportHub | None = None
        try:
            engine = self.compute.loaded.result()
            if self._stopped:
                return
            assert self._arena is not None
            launch = self.launch
            hub = make_hub(
                launch.node_id, launch.cluster_id, self._arena, launch.config, launch.secret,
                self._mailbox.wake, engine.device.type,
            )  # fmt: skip
            core = self._make_core(engine)
            mover = (
                BlockMover(hub)
                if engine.device.type == "cpu"
                else DeviceBlockMover(hub, self.compute, self._arena.blocks)
            )
            self._runner = NodeRunner(
                core, self._mailbox, mover, self.compute, self.launch.coordinator,
                self._hello(engine, hub),
            )  # fmt: skip
            if not self._stopped:
                self._runner.run()
        finally:
            self.compute.close()
            if hub is not None:
                hub.close()
            self._mailbox.close(linger_s=0.2)
            if self._arena is not None:
                self._arena.close()
            if self._cores is not None:
                self._cores.close()

    # -------------------------------------------------------------- parts
    def _load(self) -> Engine:
        """In the compute thread: weights into memory, an arena for KV, kernels compiled."""
        import torch

        from pd.engine.engine import Engine
        from pd.engine.precision import choose_device, choose_precision, kv_layout
        from pd.engine.profiler import Profiler
        from pd.engine.spec import ModelSpec

        config, model = self.launch.config, self.launch.config.model
        if config.cluster.pin_cpus:
            self._cores = CoreClaim(self.launch.threads)
            self._cores.pin()
        torch.set_num_threads(self.launch.threads)
        spec = ModelSpec.from_dir(model.model, load_format=model.load_format, seed=model.seed)
        device = choose_device(model.device)
        layout = kv_layout(
            spec, choose_precision(model.dtype, device, spec), config.cache.block_size
        )
        kind = _kind(device.type)
        kv_bytes = config.cache.kv_bytes(kind)
        num_blocks = max(1, (kv_bytes or 0) // layout.block_bytes)
        shared = "shm" in config.transfer.transports
        if kind == "cpu":
            self._arena = KVArena.resident(layout, num_blocks, shared=shared, option="kv_cache_gib")
        engine = Engine(
            model.model,
            device=model.device,
            dtype=model.dtype,
            load_format=model.load_format,
            seed=model.seed,
            block_size=config.cache.block_size,
            max_model_len=model.max_model_len,
            kv_bytes=kv_bytes,
            kv_buffer=None if self._arena is None else self._arena.blocks,
            gpu_memory_utilization=config.cache.gpu_memory_utilization,
            max_num_batched_tokens=config.scheduler.token_budget(kind),
            max_num_seqs=config.scheduler.max_num_seqs,
        )
        if self._arena is None:
            # Beside the KV on the device; costs memory only for what has been moved.
            self._arena = KVArena(layout, engine.num_blocks, shared=shared)
        engine.warmup()
        points = first_points(
            config.scheduler.token_budget(kind), config.scheduler.max_num_seqs,
            engine.max_model_len, engine.num_blocks, engine.block_size,
        )  # fmt: skip
        self._steps = tuple(Profiler(engine, spec.vocab_size).least(points))
        self._prefill_rate = self._steps[0].prompt_rate
        return engine

    def _make_core(self, engine: Engine) -> NodeCore:
        launch, config = self.launch, self.launch.config
        limits = node_limits(config, _kind(engine.device.type))
        pool = BlockPool(
            engine.num_blocks,
            engine.block_size,
            prefix_cache=config.cache.prefix_cache,
            log=BlockLog(),
        )
        layout = engine.layout
        return NodeCore(
            launch.node_id,
            launch.role,
            pool,
            limits,
            layout.content,
            layout.block_bytes,
            key_space=config.cache.key_space(launch.secret, launch.cluster_id),
            prefill_rate=self._prefill_rate,
        )

    def _hello(self, engine: Engine, hub: TransportHub) -> NodeHello:
        return NodeHello(
            node_id=self.launch.node_id,
            role=self.launch.role,
            incarnation=self.incarnation,
            endpoints={"control": self._mailbox.endpoint, **hub.endpoints()},
            layout=engine.layout.content,
            num_blocks=engine.num_blocks,
            block_size=engine.block_size,
            max_model_len=engine.max_model_len,
            max_num_seqs=self.launch.config.scheduler.max_num_seqs,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=engine.device.type,
            prefill_rate=self._prefill_rate,
            steps=self._steps,
        )


def _kind(device_type: str) -> Device:
    return "cpu" if device_type == "cpu" else "cuda"
