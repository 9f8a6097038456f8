"""The gate in front of every route: who may talk to the page, how much they may send, and rules for browsers.

Even a page that listens on this machine only can be reached by any web page that its user opens: a foreign page may
send a form here, and with DNS rebinding a browser takes this machine for the foreign page's server. So a request must
name one of our hosts, and a browser's request for another page is refused. Scripts send no Origin and pass.

Sources: RFC 9110, 7.2 (Host) and 15.5.20 (421); RFC 6454 (Origin); w3.org/TR/fetch-metadata; w3.org/TR/CSP3.
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv6Address, ip_address

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.services import ConfigError

MAX_BODY_BYTES = 1 << 20
"""Largest body of a request. All inputs of the page together have some kilobytes."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ACTIONS = re.compile(r"/gradio_api/(queue/join|cancel|reset|(run|api|call|call/v2)/[^/]+)/?")
"""Routes that accept POST: events of the page, and calls of scripts. The page does not use Gradio's other routes."""

_AUTHORITY = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc\s*=)[^>]*>(.*?)</script", re.IGNORECASE | re.DOTALL)
HUB_FRAMES = ("'self'", "https://huggingface.co", "https://*.huggingface.co")


@dataclass(frozen=True)
class Access:
    """Who may talk to the page."""

    hosts: frozenset[str] | None
    """Host names that requests may use, beside those of this machine; None: any name."""
    origins: frozenset[str] = frozenset()
    """Names of the page behind a proxy that renames the host."""
    frames: tuple[str, ...] = ()
    """Who may show the page in a frame, as `frame-ancestors` names them."""


def access_for(
    bind: str, *, share: bool = False, allowed: Sequence[str] = (), in_space: bool = False, space_host: str = ""
) -> Access:
    """Who may talk to a page that listens on the address `bind`.

    On loopback it answers to this machine's own names and the `allowed` names only. Elsewhere its names are unknown: it
    answers to any name, or only to `allowed` names if there are some. A list always includes loopback.

    Args:
        bind: host name or address on which the server listens.
        share: it also has a public link, whose name is not known in advance.
        allowed: names given by the user, as `host_name` returns them.
        in_space: the page is shown by the Hugging Face hub, in a frame.
        space_host: the Space's public name.
    """
    names = frozenset(allowed)
    listed = bool(names) or (is_loopback(bind) and not share and not in_space)
    return Access(
        hosts=names if listed else None,
        origins=names | ({space_host.lower()} if space_host else frozenset()),
        frames=HUB_FRAMES if in_space else (),
    )


def is_loopback(host: str) -> bool:
    """True for `localhost` and the loopback addresses; IPv6 with or without brackets."""
    host = _plain(host.removeprefix("[").removesuffix("]"))
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(text: str) -> str:
    """The name in `--allow-host`, in the spelling used to compare. Raises `ConfigError` if it is not a host name."""
    found = _split(text)
    if found is None or found[1]:
        raise ConfigError(
            f"{text!r} is not a host name.",
            remedy="Give --allow-host a name like lab.example.org, without scheme and port.",
        )
    return found[0]


def policy(frames: Sequence[str], scripts: Sequence[str] = ()) -> str:
    """Content-Security-Policy: everything comes from this server, inline scripts only if named.

    `unsafe-eval` is needed because Gradio makes functions from text (`js=`, `js_on_load`); `unsafe-inline`, for styles
    only, because Gradio and plotly set styles by script.

    Args:
        frames: who may show the page in a frame; empty: nobody.
        scripts: sources of inline scripts, `'sha256-…'`.
    """
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(["'self'", "'unsafe-eval'", *scripts]),
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
        "manifest-src": "'self'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": " ".join(frames) or "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items()) + ";"


class Gate:
    """ASGI middleware. Refusals are plain text: message and remedy, one line each."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here uses websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.access.frames)
        refusal = refuse(self.access, scope["method"], scope["path"], Headers(scope=scope))
        body = await _read(receive, Headers(scope=scope)) if refusal is None else b""
        if body is None:
            refusal = _refusal(413, "A request may have 1 MiB at most.", "Send less at once.")
        if refusal is not None:
            await refusal(scope, receive, answer.send)
            return
        try:
            await self.app(scope, _replay(body or b"", receive), answer.send)
        except Exception:
            if not answer.started:
                words = _refusal(500, "The server failed to answer.", "Its log says why. Reload the page.")
                await words(scope, receive, answer.send)
            raise


class Doorstep:
    """ASGI middleware in front of Gradio's own, which would answer a browser's preflight request by itself. It only
    refuses; `Gate`, behind it, checks again, so that nothing depends on how Gradio starts."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if scope["type"] == "http":
            refusal = refuse(self.access, scope["method"], scope["path"], Headers(scope=scope))
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await refusal(scope, receive, _Answer(send, self.access.frames).send)


def outermost(access: Access) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan that puts a `Doorstep` before everything that answers."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        inside = app.middleware_stack
        assert inside is not None, "a server's first call, which brought us here, builds it"
        app.middleware_stack = Doorstep(inside, access)
        yield

    return lifespan


def refuse(access: Access, method: str, path: str, headers: Headers) -> PlainTextResponse | None:
    """The refusal of a request; None if it may pass."""
    hosts = headers.getlist("host")
    authority = _split(hosts[0]) if len(hosts) == 1 else None
    if authority is None and (hosts or access.hosts is not None):
        return _refusal(
            400, "The request does not name its host as HTTP asks.", "Send one Host header: name or address."
        )
    host = authority[0] if authority else ""
    if access.hosts is not None and host not in access.hosts and not is_loopback(host):
        return _refusal(
            421,
            f"This lab does not answer to the name {host}.",
            "Open it at http://127.0.0.1 with its port. If that name is right, start the lab with "
            f"`python app.py --allow-host {host}`.",
        )
    if not _from_the_page(access, authority, headers.getlist("origin")):
        return _refusal(
            403,
            "This request comes from the page of another site, or of another port.",
            "Open the lab itself and do it there. Behind a proxy that renames the host, start the lab with "
            "`python app.py --allow-host NAME`, with the name in the browser's address.",
        )
    if headers.get("sec-fetch-site") == "cross-site" or (
        headers.get("sec-fetch-site") == "same-site" and method not in SAFE_METHODS
    ):
        followed_link = method in SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate"
        if not followed_link:
            return _refusal(403, "This request was made by another site.", "Open the lab itself and do it there.")
    if method not in SAFE_METHODS and not (method == "POST" and ACTIONS.fullmatch(path)):
        return _refusal(
            404,
            f"The lab takes no files, and there is nothing to {method.lower()[:10]} at this address.",
            "Scripts call the endpoints that the page lists under `Use via API`.",
        )
    return None


def _from_the_page(access: Access, authority: tuple[str, str] | None, origins: Sequence[str]) -> bool:
    """True unless a browser says that another page sent the request."""
    if not origins:
        return True
    found = _ORIGIN.fullmatch(origins[0]) if len(origins) == 1 else None
    origin = _split(found["authority"]) if found else None
    if found is None or origin is None:
        return False
    default = _DEFAULT_PORTS[found["scheme"].lower()]
    same = authority is not None and (origin[0], origin[1] or default) == (authority[0], authority[1] or default)
    return same or origin[0] in access.origins


def _split(authority: str) -> tuple[str, str] | None:
    """Host and port (empty if there is none) of `host[:port]`; None if it has another form."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    host = _plain(found["six"] or found["name"])
    if found["six"]:
        try:
            IPv6Address(found["six"])
        except ValueError:
            return None
    return (host, found["port"] or "") if host and not host.endswith(".") else None


def _plain(host: str) -> str:
    """One spelling of a name or an address: lower case, no final dot, IPv4 as itself."""
    host = host.lower().removesuffix(".")
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def _refusal(status: int, message: str, remedy: str) -> PlainTextResponse:
    return PlainTextResponse(f"{message}\n{remedy}\n", status_code=status)


async def _read(receive: Receive, headers: Headers) -> bytes | None:
    """The whole body, read before any work on it; None if it is longer than allowed."""
    promised = headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, then all later messages."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


class _Answer:
    """Sends an answer with security headers for browsers. An HTML page is held until its scripts are known."""

    def __init__(self, send: Send, frames: Sequence[str]) -> None:
        self.started = False
        self._send = send
        self._frames = frames
        self._held: Message | None = None
        self._page = bytearray()

    async def send(self, message: Message) -> None:
        """An ASGI `send`."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=message["headers"])
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers["Content-Security-Policy"] = policy(self._frames)
            if not self._frames:
                headers["X-Frame-Options"] = "DENY"
            message["headers"] = headers.raw
            if headers.get("content-type", "").startswith("text/html"):
                self._held = message
                return
        elif message["type"] == "http.response.body" and self._held is not None:
            self._page += message.get("body", b"")
            if message.get("more_body", False):
                return
            start, self._held = self._held, None
            MutableHeaders(raw=start["headers"])["Content-Security-Policy"] = policy(
                self._frames, inline_scripts(bytes(self._page))
            )
            await self._send(start)
            message = {"type": "http.response.body", "body": bytes(self._page)}
        await self._send(message)


def inline_scripts(page: bytes) -> list[str]:
    """Sources that allow exactly the inline scripts of an HTML page, each once."""
    digests = (sha256(script).digest() for script in _INLINE_SCRIPT.findall(page))
    return list(dict.fromkeys(f"'sha256-{b64encode(digest).decode()}'" for digest in digests))
