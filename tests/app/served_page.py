"""The whole page, served without workers on loopback, and raw requests to it."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio_client import Client

import app
from app.services import Lab


@dataclass(frozen=True)
class Answer:
    """What the server said to one request."""

    status: int
    headers: dict[str, str]
    """By name in lower case."""
    body: str


@dataclass(frozen=True)
class Served:
    """The page, a script that talks to it, and the lab behind it."""

    port: int
    client: Client = field(repr=False)
    lab: Lab

    def raw(self, request: bytes, to_the_end: bool = False) -> Answer:
        """Send these bytes as they are and read the answer; a stream is read only if it is wanted `to_the_end`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as stream:
                status = int(stream.readline().split()[1])
                headers: dict[str, str] = {}
                while line := stream.readline().strip():
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.strip().lower()] = value.strip()
                body = stream.read(int(headers["content-length"])) if "content-length" in headers else b""
                body += stream.read() if to_the_end else b""
        return Answer(status, headers, body.decode("utf-8", "replace"))

    def request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"", host: str = ""
    ) -> Answer:
        """One request with these headers; `Host` is the server's own unless `host` is given."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
        return self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    def post(self, target: str, data: Any, headers: Mapping[str, str] | None = None, host: str = "") -> Answer:
        """One POST of JSON."""
        body = json.dumps(data).encode()
        return self.request("POST", target, {"Content-Type": "application/json", **(headers or {})}, body, host)

    def outcome(self, session: str) -> dict[str, Any]:
        """How the event ended that this session asked for."""
        request = f"GET /gradio_api/queue/data?session_hash={session} HTTP/1.0\r\nHost: localhost\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as stream:
                said = next(line for line in stream if b"process_completed" in line)
        return json.loads(said.removeprefix(b"data: "))


@contextmanager
def serve_page(home: Path, **options: Any) -> Iterator[Served]:
    """Serve the page on `home` until the end of the block; `options` go to `build_app`."""
    blocks = app.build_app(home, **options)
    blocks.queue().launch(prevent_thread_lock=True, **app.launch_options(home, blocks))
    client = Client(blocks.local_url, verbose=False)
    try:
        yield Served(blocks.server_port, client, Lab(home))
    finally:
        client.close()
        blocks.close()
