"""`python app.py` with an address that cannot be: the message says what is wrong and what to change."""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def start() -> ModuleType:
    """app.py as a module; as `app` it would be the package."""
    spec = importlib.util.spec_from_file_location("start_page", ROOT / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 on which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def said(start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, *arguments: str) -> str:
    """What app.py says with these arguments before it ends; it must not come as far as to serve."""

    def build(*_: object, **__: object) -> None:
        raise AssertionError("it would serve")

    import app

    monkeypatch.setattr(app, "build_app", build)
    data_dir = () if "--data-dir" in arguments else ("--data-dir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["app.py", *data_dir, *arguments])
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code not in (0, None)
    text = capsys.readouterr().err + str(ended.value.code)
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("port", ["99999", "-1", "0", "65536", "abc", "", "80.0", "9" * 5001, "٧", "1_000", " 80"])
def test_a_port_is_a_number_from_1_to_65535(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, port: str
) -> None:
    text = said(start, monkeypatch, tmp_path, capsys, f"--port={port}")
    assert "1 to 65535" in text
    assert "--port" in text
    assert len(text) < 2000


@pytest.mark.parametrize(
    "host", ["300.1.1.1", "no-such-host.invalid", "192.0.2.1", "x" * 300, "", "a b", "127.0.0.1:80"]
)
def test_a_wrong_host_advises_another_host_and_no_port(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, host: str
) -> None:
    text = said(start, monkeypatch, tmp_path, capsys, f"--host={host}")
    assert "--host" in text
    assert "127.0.0.1" in text
    assert "--port" not in text
    assert len(text) < 600


def test_a_taken_port_advises_another_port_and_no_host(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, taken: int
) -> None:
    text = said(start, monkeypatch, tmp_path, capsys, f"--port={taken}")
    assert str(taken) in text
    assert "another program" in text
    assert "--port" in text
    assert "--host" not in text


def test_a_port_that_needs_rights_says_so(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """A process of the administrator may take any port, so the system's refusal is played back."""

    class Refusing(socket.socket):
        def bind(self, address: Any, /) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(start.socket, "socket", Refusing)
    text = said(start, monkeypatch, tmp_path, capsys, "--port=80")
    assert "80" in text
    assert "rights" in text
    assert "1024" in text


def test_an_address_that_can_be_is_let_pass(start: ModuleType) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "127.0.0.2"):
        start.check_address(host, None)
        start.check_address(host, free)
    with socket.socket() as listener:  # the check itself leaves the port free
        listener.bind(("127.0.0.1", free))


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_an_address_of_version_6_may_stand_in_brackets(start: ModuleType) -> None:
    start.check_address("::1", None)
    start.check_address("[::1]", None)


def test_an_empty_data_dir_is_refused(
    start: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert "--data-dir" in said(start, monkeypatch, tmp_path, capsys, "--data-dir", "")


def run_app(*arguments: str, **environment: str) -> str:
    """Start app.py for real; what it says when it ends by itself."""
    done = subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GRADIO_SERVER_PORT", "abc", "1 to 65535"),
        ("GRADIO_SERVER_PORT", "99999", "1 to 65535"),
        ("GRADIO_NUM_PORTS", "many", "GRADIO_NUM_PORTS"),
        ("GRADIO_SERVER_NAME", "300.1.1.1", "127.0.0.1"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, words: str) -> None:
    text = run_app(**{name: value})
    assert name in text
    assert words in text
    assert len(text.strip().splitlines()) == 2


def test_an_empty_variable_is_none(start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS", "GRADIO_SERVER_NAME")
    for name in names:
        monkeypatch.setenv(name, "")
    start.check_environment()
    assert not any(name in os.environ for name in names)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7860")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    start.check_environment()
