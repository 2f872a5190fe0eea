"""Everything one pool process holds, put together: arena, disk, sockets, loop."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

from kvstore.arena import KVArena
from kvstore.layout import KVLayout
from kvstore.pool.core import PoolCore
from kvstore.pool.disk import DiskTier
from kvstore.pool.runner import PoolRunner
from pd.config import GIB, Config
from pd.errors import ConfigError
from pd.limits import pool_limits
from pd.mailbox import Mailbox
from pd.messages import NodeHello
from pd.node.blockmover import BlockMover
from pd.node.transports import make_hub
from pd.types import Peer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolLaunch:
    """What a pool process is told when it is started; `layout` is that of the nodes."""

    pool_id: str
    cluster_id: int
    coordinator: Peer
    config: Config
    layout: KVLayout
    secret: str | None = None


class PoolProcess:
    """Opens its tiers, joins, serves. `run` returns after `stop`, or raises why it ended."""

    def __init__(self, launch: PoolLaunch) -> None:
        self.launch = launch
        self.incarnation = time.time_ns()
        config, layout = launch.config, launch.layout
        if config.pool.pool_dtype != "auto":
            layout = replace(layout, dtype=config.pool.pool_dtype)
        num_pages = int(config.pool.pool_dram_gib * GIB) // layout.block_bytes
        if num_pages < 1:
            raise ConfigError(
                f"pool_dram_gib = {config.pool.pool_dram_gib:g} is less than one block of "
                f"{layout.block_bytes / 2**20:.2g} MiB: set more, or 0 for no pool"
            )
        self._mailbox = Mailbox(
            launch.pool_id,
            launch.cluster_id,
            bind=f"tcp://{config.cluster.bind}:*",
            secret=launch.secret,
            max_message_bytes=config.transfer.max_message_bytes,
        )
        shared = "shm" in config.transfer.transports
        self._arena = KVArena.resident(layout, num_pages, shared=shared, option="pool_dram_gib")
        self._hub = make_hub(
            launch.pool_id, launch.cluster_id, self._arena, config, launch.secret,
            self._mailbox.wake,
        )  # fmt: skip
        self._disk: DiskTier | None = None
        recovered: list[tuple[int, bytes]] = []
        if config.pool.pool_disk_gib > 0:
            self._disk = DiskTier(
                Path(config.pool.pool_disk_dir or "").expanduser() / launch.pool_id,
                layout,
                int(config.pool.pool_disk_gib * GIB),
                wake=self._mailbox.wake,
                verify=config.transfer.verify,
            )
            recovered = self._disk.recover()
        num_slots = 0 if self._disk is None else self._disk.num_slots
        limits = pool_limits(config, num_pages, num_slots)
        core = PoolCore(launch.pool_id, limits)
        core.recovered(recovered)
        log.info("%d pages in memory, %d slots on disk, %d blocks found there",
                 num_pages, limits.num_slots, len(recovered))  # fmt: skip
        self._runner = PoolRunner(
            core, self._mailbox, BlockMover(self._hub), self._arena, self._disk,
            launch.coordinator, self._hello(num_pages),
        )  # fmt: skip

    def stop(self) -> None:
        """From any thread: end the loop; memory and sockets go with it, the disk tier stays."""
        self._runner.stop()

    def run(self) -> None:
        try:
            self._runner.run()
        finally:
            self._hub.close()
            if self._disk is not None:
                self._disk.close()
            self._mailbox.close(linger_s=0.2)
            self._arena.close()

    def _hello(self, num_pages: int) -> NodeHello:
        return NodeHello(
            node_id=self.launch.pool_id,
            role="pool",
            incarnation=self.incarnation,
            endpoints={"control": self._mailbox.endpoint, **self._hub.endpoints()},
            layout=self.launch.layout.content,
            num_blocks=num_pages,
            block_size=self.launch.layout.block_size,
            max_model_len=0,
            max_num_seqs=0,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
