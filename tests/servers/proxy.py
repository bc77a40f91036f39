"""A TCP proxy that breaks connections at a chosen moment, as networks do.

A request is what a client sends from one answer of the server to the next, whatever the protocol. So a driver's first
requests on a connection are its own (PostgreSQL's ask for encryption and log in), and a long one that is answered in
parts, such as a pipeline of Redis, may count more than once: those are better chosen by what they contain.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

from tests.servers.processes import Port
from tests.servers.urls import address, with_port

CHUNK = 1 << 16
# A client that has sent nothing for so long is waiting for the reply.
QUIET_SECONDS = 0.1


class Fault:
    """A connection that will be cut once."""

    def __init__(self, *, nth: int, containing: bytes, forward: bool) -> None:
        self.left = nth
        self.containing = containing
        self.forward = forward
        self._happened = threading.Event()

    def count(self, data: bytes, before: bytes, *, begins: bool) -> bool:
        """Whether ``data``, which a client sent after ``before``, has what the fault waits for.

        :param begins: it is the beginning of a request.
        """
        if self.containing:
            # What ended before has been counted.
            before = before[len(before) - len(self.containing) + 1 :] if len(self.containing) > 1 else b""
            self.left -= (before + data).count(self.containing)
        elif begins:
            self.left -= 1
        return self.left <= 0

    @property
    def happened(self) -> bool:
        return self._happened.is_set()

    def wait(self, seconds: float = 10.0) -> None:
        """Waits until the connection was cut and, if the reply was lost, until the server has answered.

        :raises TimeoutError: it was not.
        """
        if not self._happened.wait(seconds):
            raise TimeoutError(f"no connection was cut in {seconds:g} s: {self.left} more requests were to come first")

    def end(self) -> None:
        self._happened.set()


class Proxy:
    """What :func:`proxy` gives. Its methods can be called from any thread, and return at once."""

    def __init__(self, url: str, port: int) -> None:
        self.url = with_port(url, port)
        self.port = port
        self._server = address(url)
        self._changed = threading.Condition()
        self._stalled = False
        self._faults: list[Fault] = []
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self.up()

    def through(self, url: str) -> str:
        """Another URL of the same server, such as one of its databases, by way of the proxy."""
        if address(url) != self._server:
            raise ValueError(f"{url} is not at {self._server}, where this proxy leads")
        return with_port(url, self.port)

    def lose_reply(self, nth: int = 1, *, containing: bytes = b"") -> Fault:
        """The server gets the n-th request from now and carries it out, but the client sees the connection break.

        :param containing: counts these bytes instead, wherever they stand in what clients send.
        """
        return self._add(Fault(nth=nth, containing=containing, forward=True))

    def lose_request(self, nth: int = 1, *, containing: bytes = b"") -> Fault:
        """The connection breaks before the server gets the n-th request from now."""
        return self._add(Fault(nth=nth, containing=containing, forward=False))

    def forget(self) -> None:
        """Takes back the faults that have not happened."""
        with self._changed:
            self._faults.clear()

    def cut(self) -> None:
        """Breaks every connection now; new ones are taken."""
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            connection.break_off()

    def stall(self) -> None:
        """Holds back everything, in both directions, until :meth:`resume`."""
        with self._changed:
            self._stalled = True

    def resume(self) -> None:
        with self._changed:
            self._stalled = False
            self._changed.notify_all()

    def down(self) -> None:
        """Breaks every connection and refuses new ones, until :meth:`up`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        self.cut()

    def up(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _add(self, fault: Fault) -> Fault:
        with self._changed:
            self._faults.append(fault)
        return fault

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                _reset(client)
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, client, server)
            with self._changed:
                self._connections.add(connection)
            if self._listener is not listener:
                connection.break_off()
            for pump in (connection.forward_requests, connection.forward_replies):
                threading.Thread(target=pump, daemon=True).start()

    def _flow(self, connection: _Connection) -> bool:
        """Waits while everything is held back; False if the connection has been cut."""
        with self._changed:
            self._changed.wait_for(lambda: connection.broken or not self._stalled)
            return not connection.broken

    def _fault_for(self, data: bytes, before: bytes, *, begins: bool) -> Fault | None:
        with self._changed:
            for fault in self._faults:
                if fault.count(data, before, begins=begins):
                    self._faults.remove(fault)
                    return fault
        return None

    def _drop(self, connection: _Connection) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()


class _Connection:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.broken = False
        self._proxy = proxy
        self._client = client
        self._server = server
        self._asking = False
        self._asked_at = 0.0
        self._lost: Fault | None = None
        self._breaking = threading.Lock()

    def forward_requests(self) -> None:
        before = b""
        while data := _receive(self._client):
            if not self._proxy._flow(self):
                return
            fault = self._proxy._fault_for(data, before, begins=not self._asking)
            self._asking, self._asked_at = True, time.monotonic()
            before = (before + data)[-CHUNK:]
            if fault is not None and not fault.forward:
                self.break_off()
                fault.end()
                return
            if fault is not None:
                self._lost = fault
            if not _send(self._server, data):
                break
        # The client has finished; the server may still have something to say.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)

    def forward_replies(self) -> None:
        while data := _receive(self._server):
            if self._lost is not None:
                self._lose_reply(self._lost)
                return
            if not self._proxy._flow(self):
                return
            self._asking = False
            if not _send(self._client, data):
                break
        self.break_off(reset=False)

    def break_off(self, *, reset: bool = True) -> None:
        with self._breaking:
            if self.broken:
                return
            self.broken = True
            for one in (self._client, self._server):
                _reset(one) if reset else _close(one)
        self._proxy._drop(self)

    def _lose_reply(self, fault: Fault) -> None:
        # The first reply may be to a part of what the client is still sending.
        while time.monotonic() - self._asked_at < QUIET_SECONDS:
            if select.select([self._server], [], [], QUIET_SECONDS)[0] and not _receive(self._server):
                break
        _reset(self._client)
        # Without a rest that it cannot deliver, the server does all that it was sent, and then closes.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)
        while _receive(self._server):
            pass
        self.break_off()
        fault.end()


@contextlib.contextmanager
def proxy(url: str) -> Iterator[Proxy]:
    """A proxy before the server of ``url``, which must name a TCP host and port."""
    with Port() as port:
        one = Proxy(url, port.number)
        try:
            yield one
        finally:
            one.down()


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(CHUNK)
    except OSError:
        return b""


def _send(connection: socket.socket, data: bytes) -> bool:
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def _reset(connection: socket.socket) -> None:
    # With a zero linger, closing sends RST: the peer sees an error, not an orderly end. Shutting down the reading side
    # sends nothing, but wakes the thread that reads; until it has returned, the socket would not be closed.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    connection.close()


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
