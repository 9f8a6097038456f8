"""Who may talk to the page: by what name, from which pages, how much at once, and what browsers are told."""

import json
import re
import time
from collections.abc import Callable

import pytest
from served_page import Served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.security import MAX_BODY_BYTES, Access, Gate, access_for, host_name
from app.services import ConfigError

FOREIGN = {"Origin": "http://evil.example"}
JOIN = "/gradio_api/queue/join"


# The page as it is served


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(served: Served, headers: dict[str, str] | None = None, host: str = "", method: str = "sft") -> int:
    """Ask for a run as a script would, over the shortest way; returns the status of the answer."""
    data = {"data": ["sandbox-check", [method]]}
    return served.post("/gradio_api/call/start_alignment", data, headers, host).status


def test_a_page_of_another_site_starts_nothing(served: Served) -> None:
    """DNS rebinding: a browser believes that this machine is evil.example, and says so in Host and Origin."""
    before = len(served.lab.runs())
    port = served.port
    assert start(served, host=f"evil.example:{port}") == 421
    assert start(served, {"Origin": f"http://evil.example:{port}"}, host=f"evil.example:{port}") == 421
    assert start(served, FOREIGN) == 403
    assert start(served, {"Origin": "null"}) == 403
    assert start(served, {"Sec-Fetch-Site": "cross-site"}) == 403
    assert len(served.lab.runs()) == before
    assert start(served, {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}) == 200
    assert start(served, method="tvaccine") == 200, "scripts send no Origin"
    wait_until(lambda: len(served.lab.runs()) == before + 2)
    for run in served.lab.runs()[:2]:
        served.lab.delete_run(run.id)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/config"),
        ("GET", "/lab/lab.js"),
        ("GET", "/gradio_api/queue/data?session_hash=a"),
        ("GET", "/gradio_api/call/list_runs/abc"),
        ("GET", "/gradio_api/heartbeat/abc"),
        ("POST", JOIN),
        ("POST", "/gradio_api/run/list_runs"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/cancel"),
        ("POST", "/gradio_api/reset"),
        ("PUT", "/"),
        ("DELETE", "/"),
        ("OPTIONS", "/"),
    ],
)
def test_every_route_of_gradio_stands_behind_the_gate(served: Served, method: str, path: str) -> None:
    assert served.request(method, path, host="evil.example").status == 421
    assert served.request(method, path, FOREIGN).status == 403


@pytest.mark.parametrize("path", ["/", JOIN, "/gradio_api/run/list_runs"])
def test_a_browser_s_question_before_a_request_is_refused_like_the_request(served: Served, path: str) -> None:
    """A preflight (Fetch, 3.2.2): Gradio would answer it before anything that is put behind its own middleware."""
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    foreign = served.request("OPTIONS", path, FOREIGN | asks)
    assert foreign.status == 403
    assert "another site" in foreign.body
    assert not [name for name in foreign.headers if name.startswith("access-control-allow")]
    assert foreign.headers["x-content-type-options"] == "nosniff"
    own = {"Origin": "http://localhost:1"}
    assert served.request("OPTIONS", path, own | asks).status == 403, "another program's page on this machine"
    assert served.request("OPTIONS", path, FOREIGN | asks, host="evil.example").status == 421


def test_a_refusal_is_plain_words_with_a_remedy(served: Served) -> None:
    answer = served.request("GET", "/", host="evil.example")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "evil.example" in answer.body
    assert "--allow-host" in answer.body
    assert "127.0.0.1" in answer.body


def test_old_and_odd_requests_name_a_host_too(served: Served) -> None:
    assert served.raw(b"GET / HTTP/1.0\r\n\r\n").status == 400
    assert served.raw(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").status == 200
    assert served.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").status == 400
    # The line may name a host as well; it is Host that must be ours, and only the path of the line that is used.
    line = b"GET http://localhost/config HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert served.raw(line).status == 421


def test_nothing_is_uploaded_and_nothing_large_is_taken(served: Served) -> None:
    before = sum(1 for _ in served.lab.store.home.rglob("*"))
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    answer = served.request("POST", "/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=b"}, body)
    assert answer.status == 404
    assert "takes no files" in answer.body
    large = json.dumps({"data": ["x" * MAX_BODY_BYTES]}).encode()
    kind = {"Content-Type": "application/json"}
    answer = served.request("POST", "/gradio_api/call/list_runs", kind, large)
    assert answer.status == 413
    assert "1 MiB" in answer.body
    chunk = b"%x\r\n%s\r\n" % (len(large), large)
    head = "POST /gradio_api/call/list_runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = served.raw(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode() + chunk)
    assert answer.status == 413
    small = b'{"data": []}'
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(small), small)
    answer = served.raw(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode() + chunk)
    assert answer.status == 200
    assert sum(1 for _ in served.lab.store.home.rglob("*")) == before


@pytest.mark.parametrize(
    "path", ["/", "/config", "/lab/lab.js", "/lab/runs/nobody/config.yaml", "/nothing", "/theme.css"]
)
def test_every_answer_tells_browsers_what_is_allowed(served: Served, path: str) -> None:
    headers = served.request("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert "http:" not in policy
    assert "https:" not in policy


def test_the_page_s_own_scripts_are_allowed_by_what_they_say(served: Served) -> None:
    answer = served.request("GET", "/")
    scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>", answer.body)
    assert len(scripts) > 1
    assert answer.headers["content-security-policy"].count("'sha256-") == len(scripts)


# The gate alone


def echo(request: Request) -> Response:
    return PlainTextResponse(request.method)


async def count(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


def page(_: Request) -> Response:
    return HTMLResponse("<script>a</script><script>a</script><script src='x.js'></script>")


async def talk(socket: WebSocket) -> None:
    await socket.accept()


def broken(_: Request) -> Response:
    raise RuntimeError("somebody was here")


def behind(access: Access) -> TestClient:
    """A small app behind the gate."""
    routes = [
        Route("/", echo),
        Route("/page", page),
        Route("/broken", broken),
        WebSocketRoute("/", talk),
        Route("/gradio_api/run/count", count, methods=["POST"]),
    ]
    return TestClient(
        Gate(Starlette(routes=routes), access), base_url="http://localhost", raise_server_exceptions=False
    )


LOOPBACK = access_for("127.0.0.1")
OURS = (
    *("localhost", "localhost:7860", "LOCALHOST:80", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.255.0.9"),
    *("[::1]", "[::1]:7860", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"),
)
THEIRS = (
    *("evil.example", "localhost.evil.com", "127.0.0.1.nip.io", "localhost.localdomain", "evil-localhost", "0.0.0.0"),
    *("192.168.0.7", "[::]", "[2001:db8::1]", "[::ffff:192.168.0.7]", "2130706433", "127.1"),
)
MALFORMED = (
    *("", "user@localhost", "localhost:", "localhost:x", "localhost:123456", "localhost/", "localhost, evil.example"),
    *("::1", "[::1", "[localhost]", "[::1%25lo]", "localhost..", ".", "http://localhost", "loc alhost", "lócalhost"),
)


@pytest.mark.parametrize(
    ("host", "status"),
    [*((host, 200) for host in OURS), *((host, 421) for host in THEIRS), *((host, 400) for host in MALFORMED)],
)
def test_only_this_machine_s_own_names_open_the_page(host: str, status: int) -> None:
    assert behind(LOOPBACK).get("/", headers={"Host": host.encode("latin-1")}).status_code == status


def test_several_hosts_or_origins_are_refused() -> None:
    client = behind(LOOPBACK)
    assert client.get("/", headers=[("Host", "localhost"), ("Host", "localhost")]).status_code == 400
    assert client.get("/", headers=[("Origin", "http://localhost"), ("Origin", "http://localhost")]).status_code == 403


def test_names_can_be_added_and_open_servers_take_any() -> None:
    named = behind(access_for("127.0.0.1", allowed=["lab.example.org"]))
    assert named.get("/", headers={"Host": "LAB.example.org:8443"}).status_code == 200
    assert named.get("/", headers={"Host": "other.example.org"}).status_code == 421
    assert named.get("/", headers={"Host": "localhost"}).status_code == 200
    for access in (access_for("0.0.0.0"), access_for("127.0.0.1", share=True), access_for("192.168.0.7")):
        assert behind(access).get("/", headers={"Host": "any.example.org"}).status_code == 200
        assert behind(access).get("/", headers={"Host": "user@any.example.org"}).status_code == 400
    listed = behind(access_for("0.0.0.0", allowed=["lab.example.org"]))
    assert listed.get("/", headers={"Host": "lab.example.org"}).status_code == 200
    assert listed.get("/", headers={"Host": "any.example.org"}).status_code == 421


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://localhost:7860", "localhost:7860", 200),
        ("HTTP://LOCALHOST:7860", "localhost:7860", 200),
        ("http://[::1]:7860", "[::1]:7860", 200),
        ("http://localhost", "localhost:80", 200),
        ("https://localhost", "localhost", 200),
        ("https://localhost:443", "localhost", 200),
        ("http://localhost:8000", "localhost:7860", 403),  # another program's page on this machine
        ("http://127.0.0.1:7860", "localhost:7860", 403),
        ("http://localhost.evil.com:7860", "localhost:7860", 403),
        ("http://evil.com", "localhost:7860", 403),
        ("http://user@localhost:7860", "localhost:7860", 403),
        ("http://localhost:7860/", "localhost:7860", 403),
        ("null", "localhost:7860", 403),
        ("", "localhost:7860", 403),
        ("file://", "localhost:7860", 403),
        ("chrome-extension://localhost:7860", "localhost:7860", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_the_page_itself_may_send(method: str, origin: str, host: str, status: int) -> None:
    path = "/" if method == "GET" else "/gradio_api/run/count"
    client = behind(LOOPBACK)
    assert client.request(method, path, headers={"Host": host, "Origin": origin}).status_code == status


def test_a_named_host_may_also_be_the_origin() -> None:
    """A proxy may rename the host on its way; then its own name is told with --allow-host."""
    client = behind(access_for("127.0.0.1", allowed=["hub.example.org"]))
    assert client.get("/", headers={"Origin": "https://hub.example.org"}).status_code == 200
    assert client.get("/", headers={"Origin": "https://other.example.org"}).status_code == 403


@pytest.mark.parametrize(
    ("method", "site", "mode", "status"),
    [
        ("GET", "cross-site", "navigate", 200),  # a link on another page
        ("GET", "cross-site", "no-cors", 403),
        ("GET", "none", "navigate", 200),
        ("GET", "same-origin", "cors", 200),
        ("POST", "same-origin", "cors", 200),
        ("POST", "cross-site", "navigate", 403),  # a form on another page
        ("POST", "same-site", "navigate", 403),
    ],
)
def test_browsers_say_where_a_request_comes_from(method: str, site: str, mode: str, status: int) -> None:
    path = "/" if method == "GET" else "/gradio_api/run/count"
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    assert behind(LOOPBACK).request(method, path, headers=headers).status_code == status


def test_bodies_have_a_limit() -> None:
    client = behind(LOOPBACK)
    for size in (0, 1, MAX_BODY_BYTES):
        assert client.post("/gradio_api/run/count", content=b"x" * size).text == str(size)
    assert client.post("/gradio_api/run/count", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    pieces = (b"x" * 1000 for _ in range(MAX_BODY_BYTES // 1000 + 1))
    assert client.post("/gradio_api/run/count", content=pieces).status_code == 413
    assert client.request("GET", "/", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413


def test_a_web_socket_is_refused() -> None:
    with pytest.raises(WebSocketDisconnect), behind(LOOPBACK).websocket_connect("/"):
        pass


def test_a_page_s_inline_scripts_are_named_by_their_hash() -> None:
    policy = behind(LOOPBACK).get("/page").headers["content-security-policy"]
    assert policy.count("'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='") == 1


def test_a_fault_is_answered_without_its_words() -> None:
    answer = behind(LOOPBACK).get("/broken")
    assert answer.status_code == 500
    assert "somebody" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_space_is_shown_in_the_hub_s_frame_only() -> None:
    access = access_for("0.0.0.0", space_host="owner-lab.hf.space", in_space=True)
    headers = behind(access).get("/").headers
    assert (
        "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co;" in headers["content-security-policy"]
    )
    assert "x-frame-options" not in headers, "it cannot name who may"
    origin = {"Origin": "https://owner-lab.hf.space"}
    assert behind(access).get("/", headers=origin).status_code == 200
    assert behind(access).get("/", headers={"Origin": "https://other.hf.space"}).status_code == 403


@pytest.mark.parametrize("name", ["", "*", "lab.example.org:80", "http://lab", "user@lab", "a b"])
def test_what_is_no_host_name_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ConfigError, match="host name") as caught:
        host_name(name)
    assert "lab.example.org" in caught.value.remedy
