"""A real server with real workers, and a real chromium that reports everything it should not see.

Skipped where there is no chromium, unless TVACCINE_REQUIRE_BROWSER is set: then its absence is a failure.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser_steps import PATIENCE_MS, SAY_LEAVING, Server, Watch, open_page, serve, wait_until
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from processes import free_port

from app.services import PRESETS, Lab

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    with serve(folder / "home", free_port(), folder / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def aligned_run(server: Server) -> str:
    """A run of the shortened preset, aligned by both methods; tests must leave it as it is."""
    lab = Lab(server.home)
    run = lab.start_alignment(PRESETS["sandbox-check"].config, "aligned once for all tests")
    wait_until(lambda: not lab.store.jobs(run, states=("queued", "running")))
    assert lab.run(run).status == "done"
    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("TVACCINE_REQUIRE_BROWSER"):
            pytest.fail("TVACCINE_REQUIRE_BROWSER is set, but there is no chromium: install Debian's package")
        pytest.skip("no chromium on this machine")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Every page of a test is watched; at its end nothing may have gone wrong or out."""
    watch = Watch()
    yield watch
    assert watch.console == []
    assert watch.outside == []
    assert watch.requests, "nobody looked"


NewContext = Callable[..., BrowserContext]


@pytest.fixture
def new_context(browser: Browser, watch: Watch) -> Iterator[NewContext]:
    """Makes a fresh visitor: a browser of their own, with its own memory."""
    contexts: list[BrowserContext] = []

    def make(width: int = 1440, height: int = 900, dark: bool = False) -> BrowserContext:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(SAY_LEAVING)
        context.on("page", watch.page)
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_context: NewContext, server: Server) -> Page:
    """A new visitor's page, open on the first step."""
    page = new_context().new_page()
    open_page(page, server.url)
    return page


@pytest.fixture(autouse=True)
def _nothing_runs_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no work behind for the next."""
    yield
    if "server" not in request.fixturenames:
        return
    store = request.getfixturevalue("server").store
    for run in store.runs():
        for job in store.jobs(run.id, states=("queued", "running")):
            store.cancel(job.id)
    wait_until(lambda: not any(store.jobs(run.id, states=("queued", "running")) for run in store.runs()))
