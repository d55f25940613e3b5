"""A web server for one file, with faults that a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """The file, the faults, and ``asked``, the headers of each request."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.type = "application/zip"
        self.status = 200
        self.cut: int | None = None  # bytes after which the connection breaks
        self.stall: int | None = None  # bytes after which the server stalls
        self.announced: int | None = None  # the Content-Length to send; -1 sends none
        self.location: str | None = None  # for a status that redirects; {port} is the server's own
        self.endless: tuple[bytes, bytes] | None = None  # sent instead of the file; the second again and again
        self.pause = 0.0  # seconds between the repetitions
        self.asked: list[Message] = []
        self.sent: list[int] = []
        self.stalling = threading.Event()
        self.released = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/enwik8.zip"


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(self.headers)
        if site.stall == -1:
            site.released.wait(20)
            return
        if site.endless:
            self.send_endlessly(*site.endless)
            return
        self.send_response(site.status)
        if site.location:
            self.send_header("Location", site.location.format(port=site.port))
            if "next" not in self.path and "next" in site.location:
                site.status, site.location = 200, None
        body = memoryview(site.body)
        if site.announced != -1:
            self.send_header("Content-Length", str(len(body) if site.announced is None else site.announced))
        self.send_header("Content-Type", site.type)
        self.end_headers()
        stop = min(end for end in (site.cut, site.stall, len(site.body)) if end is not None)
        site.sent.append(self.wfile.write(body[: max(0, stop)]))
        self.wfile.flush()
        if site.stall is not None:
            site.stalling.set()
            site.released.wait(20)

    def send_endlessly(self, first: bytes, piece: bytes) -> None:
        with suppress(OSError):  # the client closes the connection
            self.wfile.write(first)
            while not self.site.released.wait(self.site.pause):
                self.wfile.write(piece)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(body: bytes) -> Iterator[Site]:
    """Serve a site on its own port for the duration of the block."""
    site = Site(body)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"site": site}))
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
