"""The HTTP side: a threaded server that stops without leaving anything, and one connection's way to answer."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Exchange", "Lost", "Server"]

_POLL_S = 0.02
_LONGEST_WAIT_S = 3_600.0
# One call to the system, and no file of its own; Windows has none such.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Lost(Exception):
    """The connection is gone: the client left, the provider stops, or the script says so."""


class Server(ThreadingHTTPServer):
    """Serves each connection on a thread of its own until `stop()`."""

    # A burst of connections waits in the queue instead of being refused.
    request_queue_size = 1024
    # Not daemons: server_close() joins them, so that a stopped provider leaves no thread.
    daemon_threads = False

    def __init__(self, answer: Callable[[Exchange], None], *, keep_alive: bool) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.answer = answer
        self.keep_alive = keep_alive
        self.stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_S,), name="fake-provider", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close every connection and wait for every thread."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that it can be closed while it idles."""
        with self._lock:
            self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        with self._lock:
            self._sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what can fail here is a connection that its client has left."""


class Exchange(BaseHTTPRequestHandler):
    """One connection: reads requests and offers the ways to answer them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # Headers and body leave in one packet.
    wbufsize = -1
    server: Server
    body: bytes

    def do_POST(self) -> None:
        """Read the body and answer."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.server.answer(self)
        except (Lost, OSError):
            self.close_connection = True

    do_GET = do_POST  # noqa: N815 -- the name http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name http.server uses
        """Say nothing."""

    def handle_one_request(self) -> None:
        """Serve one request; a client that left ends the connection."""
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def finish(self) -> None:
        """Close, also when the client left with bytes unsent."""
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def send_whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a complete answer."""
        self._send_head(status, {"Content-Type": "application/json", **headers})
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def start_stream(self) -> None:
        """Send the headers of a stream."""
        self._send_head(200, {"Content-Type": "text/event-stream; charset=utf-8"})
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not self.server.keep_alive:
            self.send_header("Connection", "close")

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk of a stream; an empty one ends it.

        Raises:
            Lost: If the client has left.
        """
        try:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()
        except OSError as error:
            raise Lost from error

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the client.

        Raises:
            Lost: If the client has left, or the provider stops, which closes the connection.
        """
        end = time.monotonic() + seconds
        while True:
            if self.has_left():
                raise Lost
            rest = end - time.monotonic()
            if rest <= 0:
                return
            # Hundreds of threads that looked every few milliseconds would starve the client they are to be measured by.
            if self._hears(min(rest, _LONGEST_WAIT_S)):
                self.server.stopping.wait(min(rest, _POLL_S))

    def has_left(self) -> bool:
        """Return whether the connection is closed."""
        try:
            return self._hears(0) and not self.connection.recv(1, socket.MSG_PEEK)
        except ValueError:  # where only select() waits, it takes no file number above 1023; a write will tell
            return False
        except OSError:
            return True

    def _hears(self, seconds: float) -> bool:
        """Return whether the client says something, or leaves, within so many seconds."""
        with _Selector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return bool(selector.select(seconds))
