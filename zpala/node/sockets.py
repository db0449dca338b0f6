"""Every socket of a node and every option it has: the only place where either is decided.

Owns nothing: each function makes one socket and hands it to the thread that called it. "Contexts are thread-safe and may be shared
between threads; sockets are not" (pyzmq, "More than just bindings": one context per process, one thread per socket). So a thread
makes, uses and closes its own sockets, and is given addresses, never sockets.

Why the options are as they are (measured with libzmq 4.3.5):

* ``linger`` is 0 from the start: a socket that waits for a vanished peer would keep the process alive (libzmq#2586).
* ``ipv6`` is always 1: with 0 an IPv6 endpoint connects nowhere, silently.
* No routing id is ever set, nor ROUTER_HANDOVER, PROBE_ROUTER or ROUTER_NOTIFY: with a handover anybody takes over a peer's mailbox,
  without one a restarted peer is locked out (libzmq#4503, #2892). The ROUTER invents ids; HELLO says who is behind one.
* ``router_mandatory``: a send to a peer that has gone raises EHOSTUNREACH instead of vanishing; sends are always DONTWAIT.
* ``maxmsgsize`` counts one frame. Upwards only control messages travel, so the ROUTER takes no more than a few KiB; a DEALER takes its
  payload and a header. CURVE adds exactly 33 bytes to a frame; without keys the limits are that much wider.
* libzmq's own heartbeats are off, on purpose. When an inbound queue is full, libzmq stops reading that connection; if its peer then ends
  it and the heartbeat timer fires before the queue is read, libzmq aborts the whole process (``!_io_error``, libzmq#3937, #4364, #4841):
  anybody who reaches the port could do it with 100 bytes. What they would be for is done otherwise: the protocol's heartbeats say who is
  dead and a dead peer is dialled anew, ``TCP_MAXRT`` (TCP_USER_TIMEOUT) frees the buffers of a stopped peer, keepalive finds one that
  vanished.
* ``handshake_ivl`` drops who connects and says nothing, after 3 s instead of 30.
* A DEALER that cannot connect tries again after a second at most, so that a peer is found soon after an outage of any length.
* ``immediate`` on a DEALER: nothing is queued for a peer that is not connected; the send says EAGAIN at once.
* The high-water marks count messages, not bytes: few where tensors travel, some dozens where small messages do.
* With keys every network socket uses CURVE. ``zap_domain`` and ``zap_enforce_domain`` make the ROUTER ask the ZAP handler of its context
  about every key and refuse everybody when there is none; without them any key at all is let in.
* A monitor's end takes any number of events (``rcvhwm`` 0): libzmq's I/O thread would wait for room in it.
"""

from __future__ import annotations

import errno
import itertools
import socket
from typing import Final

import zmq

from zpala.gossip.codec import DOWN_HEADER_MAX, UP_MAX
from zpala.node.keys import SecretKey

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

CURVE_OVERHEAD_BYTES: Final = 33
INPROC_HWM: Final = 1000
LISTEN_BACKLOG: Final = 256
LEAVE_LINGER_MS: Final = 500
ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"  # where libzmq looks for it, in the same context
ZAP_DOMAIN: Final = b"zpala"
HANDSHAKES_FAILED: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL

READABLE: Final[int] = zmq.POLLIN  # for programs that wait for sockets of this module and import zmq nowhere
WRITABLE: Final[int] = zmq.POLLOUT
DEAD_LINK_S: Final = 10.0  # at least; must be longer than the longest exchange
_HANDSHAKE_MS: Final = 3_000
_RECONNECT_MS: Final = 100
_RECONNECT_MAX_MS: Final = 1_000
_numbers = itertools.count()


def node_context(*, encrypted: bool) -> Context:
    """The context of a node. One I/O thread moves 1 GB/s, but only 0.34 GB/s when it has to encrypt them: then there are two."""
    return zmq.Context(io_threads=2 if encrypted else 1)


def poller() -> zmq.Poller:
    """For the same programs: polls sockets of this module."""
    return zmq.Poller()


def listening_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on ``host`` (numeric, or "*": every address of either family) and ``port`` (0: the kernel chooses).

    SO_REUSEADDR lets a restarted node have its port back at once; the kernel still refuses a second *listening* socket, so of any
    number of processes that call this at the same instant exactly one succeeds. Raises ``OSError`` (``EADDRINUSE``: held by another).
    """
    if host == "*":
        try:
            return _listen(socket.AF_INET6, "::", port)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
                raise
            return _listen(socket.AF_INET, "0.0.0.0", port)  # a machine without IPv6
    return _listen(socket.AF_INET6 if ":" in host else socket.AF_INET, host, port)


def _listen(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST | socket.AI_PASSIVE)[0][4]
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def endpoint(host: str, port: int) -> str:
    """The libzmq endpoint of a numeric address: "tcp://127.0.0.1:5670", "tcp://[::1]:5670"."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def router_socket(
    context: Context,
    listener: socket.socket,
    dead_link_s: float = DEAD_LINK_S,
    own_key: SecretKey | None = None,
    monitor: str = "",
) -> tuple[Socket, int]:
    """The ROUTER that serves on ``listener``, which it takes over and closes with itself; and the port it serves.

    With ``own_key`` it serves only whom the ZAP handler of ``context`` lets in. ``monitor``: where its failed handshakes are told, from the
    first on; "": nowhere. A listening socket is handed over (ZMQ_USE_FD) rather than an address, so that no moment exists between claiming
    a port and serving it. ``sndhwm`` is small because tensors travel here, but not as small as their number: the small answers share the
    pipe.
    """
    host, port = listener.getsockname()[:2]
    router = context.socket(zmq.ROUTER)
    try:
        _set_network_options(router, dead_link_s)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.RCVHWM, 64)
        router.setsockopt(zmq.SNDHWM, 16)
        router.setsockopt(zmq.MAXMSGSIZE, UP_MAX + CURVE_OVERHEAD_BYTES)
        if own_key is not None:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, own_key.secret)
            router.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if monitor:
            router.monitor(monitor, HANDSHAKES_FAILED)
        router.setsockopt(zmq.USE_FD, listener.detach())
        router.bind(endpoint(host, port))
    except BaseException:
        router.close()
        raise
    return router, port


def dealer_socket(
    context: Context,
    address: str,
    payload_bytes: int,
    dead_link_s: float = DEAD_LINK_S,
    own_key: SecretKey | None = None,
    peer_key: bytes = b"",
    monitor: str = "",
) -> Socket:
    """A DEALER that connects (in the background, for ever) to ``address``, numeric, and takes frames of up to ``payload_bytes``.

    With ``own_key`` it talks only to the holder of the secret key that belongs to ``peer_key``, a public key of 32 bytes. libzmq gives up
    for good when that one refuses ``own_key``. ``monitor``: where its failed handshakes are told, from the first on; "": nowhere.
    """
    dealer = context.socket(zmq.DEALER)
    try:
        _set_network_options(dealer, dead_link_s)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.RCVHWM, 8)
        dealer.setsockopt(zmq.SNDHWM, 64)
        dealer.setsockopt(zmq.MAXMSGSIZE, payload_bytes + DOWN_HEADER_MAX + CURVE_OVERHEAD_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, _HANDSHAKE_MS)
        if own_key is not None:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, peer_key)
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, own_key.public_bytes)
            dealer.setsockopt(zmq.CURVE_SECRETKEY, own_key.secret)
        if monitor:
            dealer.monitor(monitor, HANDSHAKES_FAILED)
        dealer.connect(address)
    except BaseException:
        dealer.close()
        raise
    return dealer


def zap_socket(context: Context) -> Socket:
    """The socket at which libzmq asks, once per handshake, whether a key may come in; a context has room for one."""
    return _inproc(context, zmq.ROUTER, ZAP_ADDRESS, bind=True)


def monitor_address() -> str:
    """A place in this process where nobody else's socket is monitored."""
    return f"inproc://zpala-monitor-{next(_numbers)}"


def monitor_socket(context: Context, address: str) -> Socket:
    """The end that reads what the monitored socket of ``address`` tells; to be closed after ``disable_monitor`` of that socket."""
    made = context.socket(zmq.PAIR)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.RCVHWM, 0)
    made.connect(address)
    return made


def inproc_pair_bound(context: Context, address: str) -> Socket:
    """The end of a pipe between two threads that is made first. A pipe has two ends: a third would be ignored without a word."""
    return _inproc(context, zmq.PAIR, address, bind=True)


def inproc_pair_connected(context: Context, address: str) -> Socket:
    """The other end, made by the other thread."""
    return _inproc(context, zmq.PAIR, address, bind=False)


def inproc_pull(context: Context, address: str) -> Socket:
    """The receiving end of an inbox that any thread may send to."""
    return _inproc(context, zmq.PULL, address, bind=True)


def inproc_push(context: Context, address: str) -> Socket:
    """A sending end of an inbox; made, used and closed by the sending thread."""
    return _inproc(context, zmq.PUSH, address, bind=False)


def _inproc(context: Context, kind: int, address: str, *, bind: bool) -> Socket:
    made = context.socket(kind)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.SNDHWM, INPROC_HWM)
    made.setsockopt(zmq.RCVHWM, INPROC_HWM)
    if bind:
        made.bind(address)
    else:
        made.connect(address)
    return made


def _set_network_options(made: Socket, dead_link_s: float) -> None:
    dead_link_ms = int(1000 * dead_link_s)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.IPV6, 1),
        (zmq.HEARTBEAT_IVL, 0),
        (zmq.TCP_MAXRT, dead_link_ms),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, 15),
        (zmq.TCP_KEEPALIVE_INTVL, 5),
        (zmq.TCP_KEEPALIVE_CNT, 3),
        (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
    ):
        made.setsockopt(option, value)
