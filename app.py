"""Start the lab: the page, and the workers that train. `python app.py --help` lists the flags."""

import argparse
import errno
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

PORTS = "a port is a number from 1 to 65535"
HOSTS = "127.0.0.1 (this machine only), 0.0.0.0 (every network), or an address that this machine has"


def main() -> None:
    """Serve until Ctrl-C or SIGTERM, then end the workers; or say why the lab cannot start."""
    check_environment()
    from app.services import TVaccineError  # imports Gradio

    try:
        serve()
    except TVaccineError as error:
        sys.exit(f"{error}\n{error.remedy}")
    except (OSError, OverflowError) as error:  # Gradio's: the port was taken meanwhile, or its tries went above 65535
        sys.exit(f"{error}\nChoose another port with --port.")


def check_environment() -> None:
    """Check the variables that Gradio reads when it is imported; an empty variable counts as unset.

    Raises:
        SystemExit: one of them is wrong.
    """
    names = ("GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS", "GRADIO_SERVER_NAME")
    for name in names:
        if not os.environ.get(name, "").strip():
            os.environ.pop(name, None)
    port, number, host = map(os.environ.get, names)
    for name, value in ((names[0], port), (names[1], number)):
        if value is not None and not is_port(value):
            sys.exit(f"{name} is {value[:80]!r}; {PORTS}, and so is the number of tries.\nCorrect or unset {name}.")
    if host is not None:
        check_address(host, None, option="GRADIO_SERVER_NAME")


def is_port(text: str) -> bool:
    """True for the number of a port. Not for 0 (any free port): its number would be unknown until the page is up."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def read_port(text: str) -> int:
    """The port that `--port` names."""
    if not is_port(text):
        raise argparse.ArgumentTypeError(f"{PORTS}, not {text[:80]!r}; leave --port out for the first free one")
    return int(text)


def read_folder(text: str) -> Path:
    """The folder that `--data-dir` names."""
    if not text.strip():
        raise argparse.ArgumentTypeError("give a folder, or leave --data-dir out")
    return Path(text)


def check_address(host: str, port: int | None, option: str = "--host") -> None:
    """Find out whether a server could listen on `port` of `host`, any free port for None.

    Raises:
        SystemExit: it could not; says whether to change the host or the port.
    """
    change_host = f"Choose with {option}: {HOSTS}."
    bare = host.strip().removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(bare, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE) if bare else []
    except (OSError, UnicodeError):  # a UnicodeError: the name is too long
        found = []
    if not found:
        sys.exit(f"{option} is {host[:80]!r}, and no address of that name is known.\n{change_host}")
    reasons = [_refusal(family, protocol, address) for family, _, protocol, _, address in found]
    if any(reason == errno.EADDRINUSE for reason in reasons):
        sys.exit(f"Port {port} is in use by another program.\nChoose another with --port, or leave --port out.")
    if any(reason == errno.EACCES for reason in reasons):
        sys.exit(f"Port {port} needs the rights of an administrator.\nChoose one from 1024 up with --port.")
    if None not in reasons:  # else the name also has an address of a kind that this machine lacks
        sys.exit(f"{host[:80]} is not an address of this machine.\n{change_host}")


def _refusal(family: int, protocol: int, address: tuple[Any, ...]) -> int | None:
    """The error number with which the system refuses an address; None if it accepts."""
    try:
        with socket.socket(family, socket.SOCK_STREAM, protocol) as probe:
            if os.name == "posix":  # elsewhere it would let two programs share a port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # as servers do: else `::` would also mean 0.0.0.0
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or errno.EINVAL
    return None


def serve() -> None:
    """Serve until Ctrl-C or SIGTERM, then end the workers."""
    from app import build_app, launch_options
    from app.security import access_for, host_name, is_loopback
    from app.services import RECORDINGS, Lab, Permissions, Supervisor, SweepDriver, default_home

    parser = argparse.ArgumentParser(description=__doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # a Space sets it, and the port
    parser.add_argument("--host", default=host, help="address to listen on (0.0.0.0: everywhere)")
    parser.add_argument("--port", type=read_port, default=None, help="default: the first free one from 7860")
    parser.add_argument("--data-dir", type=read_folder, default=default_home(), help="runs and models (TVACCINE_HOME)")
    parser.add_argument(
        "--recordings",
        type=read_folder,
        default=RECORDINGS,
        help="recorded runs that visitors see before they open one; an empty folder for none",
    )
    parser.add_argument("--no-worker", action="store_true", help="start no worker processes")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers")
    parser.add_argument(
        "--own-models",
        action=argparse.BooleanOptionalAction,
        help="let visitors load any model of this machine or of the hub (default: if only this machine opens the page)",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let visitors switch on the Python code that comes with a model: it can do whatever you can",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        type=host_name,
        help="also answer to this name, of a proxy or of this machine in its network; may be given several times "
        "(default: on loopback this machine's own names only, elsewhere any)",
    )
    given = parser.parse_args()
    check_address(given.host, given.port)
    private = is_loopback(given.host) and not given.share
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    own_models = private if given.own_models is None else given.own_models
    lab = Lab(given.data_dir, Permissions(own_models, given.trust_remote_code))
    lab.take_recordings(given.recordings)
    blocks = build_app(given.data_dir, own_models=own_models, remote_code=given.trust_remote_code)
    blocks.queue()
    access = access_for(
        given.host,
        share=given.share,
        allowed=given.allow_host,
        in_space="SPACE_ID" in os.environ,
        space_host=os.environ.get("SPACE_HOST", ""),
    )
    options = launch_options(given.data_dir, blocks, access) | {"server_name": given.host, "server_port": given.port}
    _, url, _ = blocks.launch(prevent_thread_lock=True, share=given.share, **options)
    print(f"T-Vaccine Lab: {url}  (data: {given.data_dir}; Ctrl-C ends it)", flush=True)
    with ExitStack() as stack:
        if not given.no_worker:
            workers = stack.enter_context(Supervisor(given.data_dir))
            at_once = 2 * workers.num_workers
            stack.enter_context(SweepDriver(given.data_dir, at_once, lambda: not workers.standing_by, lab.permit))
        over.wait()
    blocks.close()


if __name__ == "__main__":
    main()
