"""The listening socket that all gateways of a host share.

Whoever owns the cell binds the address once and hands copies of the socket to gateway processes
of its host. All copies have one queue of connections, so a gateway that ends, of itself or not,
takes none of them with it: what it has not accepted, the next one does. With a socket of its own
for every process (SO_REUSEPORT) the kernel resets what waits at one that closes.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
import threading

from pd.errors import ConfigError

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections that wait to be accepted
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_TIMEOUT_S = 10.0


class Listener:
    """Binds at once (ConfigError if that fails), and listens from the first `take` on: before, a
    client is refused instead of kept waiting.

    `name` is what processes of this host and this user `take` the socket by.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = bind(host, port, listen=False)
        self.port: int = self._socket.getsockname()[1]
        self.name = f"pd-{secrets.token_hex(16)}"
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(f"\0{self.name}")  # a name without a file: it goes with this process
        self._door.listen()
        threading.Thread(target=self._serve, name="listener", daemon=True).start()

    def close(self) -> None:
        """Hand out no more. Copies that were taken go on."""
        try:
            self._door.shutdown(socket.SHUT_RDWR)
        except OSError:  # closed before
            return
        self._door.close()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self._door.accept()
            except OSError:
                return
            with visitor:
                try:
                    found = visitor.getsockopt(
                        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
                    )
                    if _CREDENTIALS.unpack(found)[1] == os.getuid():
                        self._socket.listen(BACKLOG)
                        socket.send_fds(visitor, [b"1"], [self._socket.fileno()])
                except OSError as error:
                    log.warning("the listening socket could not be handed on: %s", error)


def take(name: str) -> socket.socket:
    """A copy of the socket behind this name; ConfigError if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(_TIMEOUT_S)
        try:
            door.connect(f"\0{name}")
            _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
        except OSError as error:
            raise ConfigError(
                f"the cell's owner does not hand on its HTTP socket: {error}"
            ) from None
    if not descriptors:
        raise ConfigError(
            "the cell's owner does not hand on its HTTP socket: another process has taken the "
            "address meanwhile; choose another --port"
        )
    taken = socket.socket(fileno=descriptors[0])
    taken.setblocking(False)
    return taken


def bind(host: str, port: int, *, listen: bool = True) -> socket.socket:
    """A bound TCP socket; ConfigError if this host does not have the address, or not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        if listen:
            bound.listen(BACKLOG)  # from now on clients wait instead of being refused
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot serve HTTP on {host}:{port}: {error.strerror}; choose another --port"
        ) from None
    bound.setblocking(False)
    return bound
