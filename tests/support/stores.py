"""A store on this machine: files over HTTP, with entity tags and an optional password."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves `files` by path, and counts the requests.

    Attributes:
        files: Content by path; may be changed at any time.
        asked: Number of requests served by (method, path).
        password: Required value of the Authorization header; None: no authorization.
    """

    def __init__(self, password: str | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.password = password
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @contextlib.contextmanager
    def running(self) -> Iterator[FileServer]:
        thread = threading.Thread(target=self._server.serve_forever, name="file server", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    @property
    def options(self) -> dict[str, Any]:
        """Storage options of the store."""
        return {"client_kwargs": {"headers": {"Authorization": str(self.password)}}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_content=False)

            def do_GET(self) -> None:
                self.answer(with_content=True)

            def answer(self, with_content: bool) -> None:
                if store.password is not None and self.headers.get("Authorization") != store.password:
                    return self.send_error(401)
                content = store.files.get(self.path)
                if content is None:
                    return self.send_error(404)
                store.asked[self.command, self.path] += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", hashlib.sha256(content).hexdigest())
                self.end_headers()
                if with_content:
                    self.wfile.write(content)
                return None

            def log_message(self, *parts: Any) -> None:
                """Log no requests."""

        return Handler
