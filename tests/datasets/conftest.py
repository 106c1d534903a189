"""A local HTTP server that can misbehave, for the tests of downloads; the paper's triplets where they are."""

import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` at any path; ``script`` says how each request in turn is treated.

    whole (also after the script's end): as asked, ranges honoured; break: the connection closes after half
    of what was announced; full: ranges ignored; corrupt: the last byte differs; shift: another range than
    the one asked for; endless: no length announced, and two bytes too many; silent: no answer in time; a
    number: that HTTP status.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.closing = threading.Event()
        self.content = b""
        self.script: list[str | int] = []
        self.ranges: list[str | None] = []  # the Range header of each request
        self.url = f"http://127.0.0.1:{self.server_port}/archive.zip"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers["Range"])
        act = server.script.pop(0) if server.script else "whole"
        if isinstance(act, int):
            self.send_error(act)
            return
        if act == "silent":
            server.closing.wait(10)
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked and act != "full" else 0
        if act == "shift":
            start -= 1
        body = server.content[start:]
        if act == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if asked and act != "full" else 200)
        if asked and act != "full":
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        if act == "endless":
            body += b"xx"
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if act == "break" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def similarity_triplets_root() -> Path:
    """The folder of the paper's triplets, from DR_PLUGIN_SIMILARITY_TRIPLETS; without it, tests skip."""
    value = os.environ.get("DR_PLUGIN_SIMILARITY_TRIPLETS")
    if not value:
        pytest.skip("set DR_PLUGIN_SIMILARITY_TRIPLETS to the folder that holds triplets.csv and images/")
    if not (Path(value) / "triplets.csv").is_file():
        pytest.fail(f"DR_PLUGIN_SIMILARITY_TRIPLETS={value} holds no triplets.csv")
    return Path(value)
