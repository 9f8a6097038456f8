"""A server as a user starts it, a watch on what its pages do, and what a visitor does, in their words."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, expect

from tvaccine_core.store import Store

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_MS = 90_000
"""For one thing to happen on a machine that also trains; on an idle one it takes a tenth of it."""
LEAVING = "this page is being left"
"""Said on the console (`SAY_LEAVING`) by a page that is reloaded or navigated away from, before anything else."""
SAY_LEAVING = f"addEventListener('beforeunload', () => console.info('{LEAVING}'))"
CUT_OFF = ("AbortError: signal is aborted", "AbortError: BodyStreamBuffer was aborted", "Connection errored out")
"""What Gradio's client writes when a page is left while an answer is on its way: it hangs up and reports that."""
QUIET_S = 3.2
"""More than two pauses between polls, and more than the page waits before it looks at the run again."""
ALIGN_STEPS = "#run-alignment-optimisation-steps input"


@dataclass
class Server:
    """A running lab."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def store(self) -> Store:
        return Store(self.home)


@dataclass
class Watch:
    """What pages did that they must not: errors on the console, requests to other machines."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _leaving: set[Page] = field(default_factory=set)

    def page(self, page: Page) -> Page:
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", self._on_request)
        page.on("domcontentloaded", lambda page: self._leaving.discard(page))
        return page

    @property
    def outside(self) -> list[str]:
        return [url for url in self.requests if urlsplit(url).hostname not in ("127.0.0.1", None)]

    def wait_until_quiet(self, page: Page) -> None:
        """Wait until no page has asked for anything for `QUIET_S`."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        seen, since = len(self.requests), time.monotonic()
        while time.monotonic() - since < QUIET_S:
            assert time.monotonic() < deadline, self.requests[-10:]
            page.wait_for_timeout(100)  # unlike sleep, lets events come in
            if len(self.requests) != seen:
                seen, since = len(self.requests), time.monotonic()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.text == LEAVING and message.page is not None:
            self._leaving.add(message.page)
        elif message.type == "error" and not (
            message.page in self._leaving and any(words in message.text for words in CUT_OFF)
        ):
            self.console.append(message.text)

    def _on_request(self, request: Request) -> None:
        self.requests.append(request.url)


@contextmanager
def serve(home: Path, port: int, log: Path, *flags: str, recordings: Path | None = None) -> Iterator[Server]:
    """`python app.py`, as a user starts it, until the end of the block; its workers must end with it.

    Args:
        recordings: folder of recorded runs; None: none, so that a visitor begins without a run.
    """
    command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(home), *flags]
    command += ["--recordings", str(recordings or home / "none")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE_MS / 1000
    try:
        while True:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "the page does not answer"
            try:
                opener.open(url, timeout=10).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.1)
        yield Server(url, home, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def open_page(page: Page, url: str) -> None:
    """Open the lab and wait until it knows which run it shows."""
    page.goto(url)
    page.wait_for_function("document.querySelector('.lab-run')?.textContent")


def go(page: Page, step: int) -> None:
    """Open a step of the rail."""
    page.click(f"[data-step='{step}']")
    expect(page.locator(f"[data-step='{step}']")).to_have_attribute("aria-current", "step")


def wait_for_step(page: Page, step: int, state: str) -> None:
    """Wait until the rail says that a step is in `state`."""
    page.wait_for_selector(f"[data-step='{step}'][data-state='{state}']")


def choose_check(page: Page) -> None:
    """Take the shortened preset and go on."""
    page.get_by_label("Self-check").click()
    page.wait_for_function("document.querySelector('#cost').textContent.includes('scores mean nothing')")
    page.click("#to-align")
    expect(page.locator("#start-align")).to_be_visible()


def attack(page: Page) -> None:
    """Attack every aligned model."""
    go(page, 3)
    page.click("#start-attack")
    wait_for_step(page, 3, "done")


def start_long_alignment(page: Page, steps: int = 3000) -> str:
    """Start an alignment that outlasts the test; returns the run's id once steps are being made."""
    choose_check(page)
    page.fill(ALIGN_STEPS, str(steps))
    page.press(ALIGN_STEPS, "Tab")  # a number field commits when it is left
    page.click("#start-align")
    wait_for_step(page, 2, "running")
    page.wait_for_function("Number(document.querySelector('#align-cards [role=progressbar]')?.ariaValueNow) >= 0")
    return run_id(page)


def run_id(page: Page) -> str:
    """The run that the page's address names."""
    page.wait_for_function("new URL(location.href).searchParams.get('run')")
    return str(page.evaluate("new URL(location.href).searchParams.get('run')"))


def ask(page: Page, prompt: str) -> None:
    """Ask all models there are, and wait until each has answered."""
    go(page, 4)
    page.fill("#prompt textarea", prompt)
    page.click("#ask")
    page.wait_for_function(
        "prompt => { const panes = [...document.querySelectorAll('.lab-pane')];"
        " return document.querySelector('.lab-panes').dataset.prompt === prompt"
        " && panes.some(pane => pane.dataset.done === 'true')"
        " && panes.every(pane => pane.getAttribute('aria-busy') !== 'true'); }",
        arg=prompt,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
