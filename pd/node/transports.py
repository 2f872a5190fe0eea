"""The transports of a process that holds blocks, as its configuration wants them."""

from __future__ import annotations

from collections.abc import Callable

from kvstore.arena import KVArena
from kvstore.transport.base import TransportSettings
from kvstore.transport.hub import TransportHub
from pd.config import Config
from pd.sockets import CurveKeys

_BLOCK_MESSAGE_BYTES = 4 << 20  # blocks that travel in one message


def make_hub(
    member_id: str,
    cluster_id: int,
    arena: KVArena,
    config: Config,
    secret: str | None,
    on_event: Callable[[], None],
    device: str = "cpu",
) -> TransportHub:
    """A hub whose sockets are encrypted where there is a secret. `device` is where KV lies that
    the arena has copies of."""
    transfer = config.transfer
    wanted = {} if transfer.connections is None else {"connections": transfer.connections}
    settings = TransportSettings(
        bind=f"tcp://{config.cluster.bind}:*",
        keys=None if secret is None else CurveKeys.derive(secret, cluster_id),
        verify=transfer.verify,
        message_bytes=min(_BLOCK_MESSAGE_BYTES, transfer.max_message_bytes),
        wire_dtype=None if transfer.wire_dtype == "auto" else transfer.wire_dtype,
        device=device,
        **wanted,
    )
    return TransportHub(
        member_id,
        cluster_id,
        arena,
        transports=transfer.transports,
        settings=settings,
        on_event=on_event,
    )
