"""Start the lab: the page, and the workers that train beside it. `python app.py --help` lists the flags."""

import argparse
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from app import build_app, launch_options
from app.security import access_for, host_name, is_loopback
from app.services import Supervisor, TVaccineError, default_home


def main() -> None:
    """Serve until Ctrl-C or SIGTERM, then end the workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # a Space sets it, and the port
    parser.add_argument("--host", default=host, help="address to listen on (0.0.0.0: everywhere)")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    parser.add_argument("--data-dir", type=Path, default=default_home(), help="runs and models (TVACCINE_HOME)")
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
    private = is_loopback(given.host) and not given.share
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    own_models = private if given.own_models is None else given.own_models
    blocks = build_app(given.data_dir, own_models=own_models, remote_code=given.trust_remote_code).queue()
    access = access_for(
        given.host,
        share=given.share,
        allowed=given.allow_host,
        in_space="SPACE_ID" in os.environ,
        space_host=os.environ.get("SPACE_HOST", ""),
    )
    options = launch_options(given.data_dir, access) | {"server_name": given.host, "server_port": given.port}
    _, url, _ = blocks.launch(prevent_thread_lock=True, share=given.share, **options)
    print(f"T-Vaccine Lab: {url}  (data: {given.data_dir}; Ctrl-C ends it)", flush=True)
    with nullcontext() if given.no_worker else Supervisor(given.data_dir):
        over.wait()
    blocks.close()


if __name__ == "__main__":
    try:
        main()
    except TVaccineError as error:
        sys.exit(f"{error}\n{error.remedy}")
    except OSError as error:  # Gradio's, when the port is taken
        sys.exit(f"{error}\nChoose another with --port.")
