"""The processes of a cell: how they are made, and how they join as their loops would have it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cell.network import Address, Link
from cell.node import SimNode
from cell.oracle import OracleEngine
from cell.pool import PoolPages, SimDisk, SimPool
from kvstore.blocklog import BlockLog
from kvstore.blocks import BlockPool
from kvstore.pool.core import PoolCore, PoolLimits
from pd.messages import COORDINATOR, NodeHello, PeerLost, Peers, Welcome
from pd.node.core import NodeCore

if TYPE_CHECKING:
    from cell.cell import Cell

GATEWAY = "gateway"
LAYOUT = 0xFEED
_HELLO_S, _SILENCE_S = 0.5, 2.0  # as in pd.node.loop


def make_node(cell: Cell, node_id: str, address: Address) -> SimNode:
    role = cell.roles[node_id]
    pool = BlockPool(cell.num_blocks, cell.block_size, log=BlockLog())
    core = NodeCore(node_id, role, pool, cell.limits, LAYOUT)
    engine = OracleEngine(cell.num_blocks, cell.block_size)
    node = SimNode(core, engine, address)
    hello = NodeHello(
        node_id, role, address.incarnation, {}, LAYOUT, cell.num_blocks, cell.block_size,
        cell.num_blocks * cell.block_size, cell.limits.max_num_seqs, 0, "sim",
    )  # fmt: skip
    node.link = Link(hello, cell.centre, cell.now)
    return node


def make_pool(cell: Cell, pool_id: str, address: Address) -> SimPool:
    limits = PoolLimits(
        cell.pool_pages, cell.pool_slots, max_disk_writes=2, max_disk_reads=2,
        lease_s=cell.limits.lease_s, heartbeat_s=cell.limits.heartbeat_s,
    )  # fmt: skip
    disk = cell.disks.setdefault(pool_id, SimDisk())
    core = PoolCore(pool_id, limits)
    core.recovered(disk.recover())
    pool = SimPool(core, PoolPages(cell.pool_pages), address, disk)
    hello = NodeHello(
        pool_id, "pool", address.incarnation, {}, LAYOUT, cell.pool_pages, cell.block_size,
        0, 0, 0, "sim",
    )  # fmt: skip
    pool.link = Link(hello, cell.centre, cell.now)
    return pool


def say_hello(cell: Cell, link: Link) -> None:
    """Until it is answered, and in a silence of the coordinator: there may be another."""
    if cell.now < link.next_hello or (link.epoch and cell.now - link.heard < _SILENCE_S):
        return
    link.next_hello = cell.now + _HELLO_S
    if not cell.centre_up:
        return
    hello = link.hello
    if link.epoch:
        hello = replace(hello, epoch=link.epoch, peers=tuple(link.peers.values()))
        if isinstance(hello, NodeHello):
            hello = replace(hello, role=cell.nodes[hello.node_id].core.role)
    name = hello.node_id if isinstance(hello, NodeHello) else hello.gateway_id
    cell.network.post(Address(name, hello.incarnation), cell.centre, hello)


def heard(cell: Cell, link: Link, receiver: Address, message: Any) -> None:
    """What the loop of a process does with what the coordinator says."""
    link.heard = cell.now
    if isinstance(message, Welcome):
        link.centre = Address(COORDINATOR, message.coordinator)
        link.epoch = message.epoch
    elif isinstance(message, Peers):
        link.peers.update({p.id: p for p in message.peers if p.id != receiver.id})
        present = {peer.id for peer in message.peers}
        if receiver.id == GATEWAY:  # nodes keep those whose end is not known yet
            link.peers = {id_: peer for id_, peer in link.peers.items() if id_ in present}
    elif isinstance(message, PeerLost):
        known = link.peers.get(message.id)
        if known is not None and known.epoch <= message.epoch:
            del link.peers[message.id]
