"""ZeroMQ sockets as this system wants them: bounded, encrypted off the host, never lingering."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from pd.errors import ConfigError, WireError

LOOPBACK = "tcp://127.0.0.1:*"

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>\d+|\*)")


@dataclass(frozen=True)
class CurveKeys:
    """The one CURVE key pair of a cell, derived from its secret.

    Every process has both halves, so whoever lacks the secret can neither serve nor
    connect: the public half never travels, and a CURVE handshake needs it from the start.
    """

    public: bytes
    secret: bytes

    @classmethod
    def derive(cls, secret: str, cluster_id: int) -> CurveKeys:
        if not zmq.has("curve"):
            raise ConfigError("this build of ZeroMQ has no CURVE, so a secret cannot be used")
        # Slow on purpose: whoever can connect could otherwise try short secrets quickly.
        salt = b"pd/curve/1\0" + cluster_id.to_bytes(8, "little")
        raw = hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, 200_000)
        private = z85.encode(raw)
        return cls(zmq.curve_public(private), private)


def is_loopback(host: str) -> bool:
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(address: str, keys: CurveKeys | None) -> None:
    """ConfigError unless a socket may listen on this address."""
    if address.startswith(("inproc://", "ipc://")):
        return
    match = _TCP.fullmatch(address)
    if match is None:
        raise ConfigError(
            f"cannot listen on {address!r}: write tcp://HOST:PORT with an IP address or the name "
            "of a network interface, and * for any free port"
        )
    host = match["host"].strip("[]")
    try:
        every = host == "*" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        every = False
    if every:
        raise ConfigError(
            f"{address!r} would listen on every interface: name the one that peers reach"
        )
    if keys is None and not is_loopback(host):
        raise ConfigError(
            f"listening on {host}, which other hosts can reach, needs a cluster secret"
        )


def bind_host(address: str) -> str:
    """The host of an address to listen on, as other libraries want it."""
    match = _TCP.fullmatch(address)
    if match is None:
        raise ConfigError(f"{address!r} has no host: write tcp://HOST:PORT")
    return match["host"].strip("[]")


def bind(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    address: str,
    *,
    high_water_mark: int,
    max_message_bytes: int,
    keys: CurveKeys | None = None,
    inbox_messages: int | None = None,
) -> zmq.Socket[bytes]:
    """A listening socket; ConfigError if the address may not or cannot be used.

    `inbox_messages` is the high-water mark of what comes in, per peer, where it differs.
    """
    check_bind(address, keys)
    socket = _socket(context, kind, address, high_water_mark)
    if inbox_messages is not None:
        socket.setsockopt(zmq.RCVHWM, inbox_messages)
    # Per frame; a peer that sends a larger one is disconnected before it is allocated.
    socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    if keys is not None:
        socket.curve_secretkey = keys.secret
        socket.curve_publickey = keys.public
        socket.curve_server = True
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError(f"cannot listen on {address}: {error}") from None
    return socket


def connect(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    address: str,
    *,
    high_water_mark: int,
    keys: CurveKeys | None = None,
) -> zmq.Socket[bytes]:
    """A connecting socket. Returns before the peer answers; WireError for a bad address."""
    socket = _socket(context, kind, address, high_water_mark)
    if keys is not None:
        socket.curve_secretkey = keys.secret
        socket.curve_publickey = keys.public
        socket.curve_serverkey = keys.public
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        raise WireError(f"{address!r} is not an address to connect to: {error}") from None
    return socket


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str, high_water_mark: int
) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.set_hwm(high_water_mark)
    socket.setsockopt(zmq.LINGER, 0)
    # A host that vanished without a word is noticed within a minute.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 20)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 4)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    if "[" in address:
        socket.setsockopt(zmq.IPV6, 1)
    return socket
