"""What a page asks for: news of a run that trains, nothing when it rests, and all even if its script comes late."""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from browser_steps import Server, start_long_alignment, wait_for_step, wait_until
from playwright.sync_api import BrowserContext, Page, Request, Route, expect

from app.services import Lab

NewContext = Callable[..., BrowserContext]


def test_a_page_whose_script_comes_late_is_drawn_all_the_same(
    new_context: NewContext, server: Server, aligned_run: str
) -> None:
    page = new_context().new_page()
    holding = ["components are there, the script that draws them is not"]

    def hold(route: Route) -> None:
        while holding:
            page.wait_for_timeout(50)
        route.continue_()

    page.route("**/lab/lab.js", hold)
    with page.expect_response("**/gradio_api/run/predict*"):  # the page knows its run
        page.goto(f"{server.url}/?run={aligned_run}&step=2")
    page.wait_for_timeout(300)
    holding.clear()
    wait_for_step(page, 2, "done")
    expect(page.locator("#align-cards .lab-card")).to_have_count(2)
    page.wait_for_selector("#loss .lab-plot .main-svg")


def test_a_page_polls_news_while_a_run_trains_and_nothing_through_gradio(page: Page, server: Server) -> None:
    run = start_long_alignment(page)
    wait_until(lambda: steps_done(server, run) > 0)
    page.wait_for_selector("#loss .lab-plot .main-svg")  # the plot's library is loaded
    page.wait_for_timeout(1500)  # the first steps let Gradio draw a button or two
    asked: list[str] = []
    page.on("request", lambda request: asked.append(path_of(request)))
    before, began = steps_done(server, run), time.monotonic()
    while asked.count("/lab/news") < 3:
        page.wait_for_timeout(50)
    assert time.monotonic() - began > 1.5, "once per second"
    assert set(asked) == {"/lab/news"}
    assert steps_done(server, run) > before


def test_a_run_deleted_elsewhere_leaves_the_page_that_polls_it(page: Page, server: Server) -> None:
    run = start_long_alignment(page)
    lab = Lab(server.home)
    holding = ["the page does not learn that its run was stopped"]

    def hold(route: Route) -> None:
        while holding:
            page.wait_for_timeout(50)
        route.continue_()

    with page.expect_request("**/lab/news*"):
        page.route("**/lab/news*", hold)
    lab.stop(run, ("align", "baseline"))
    wait_until(lambda: not lab.store.jobs(run, states=("queued", "running")))
    lab.delete_run(run)
    holding.clear()
    expect(page.locator(".lab-run")).to_have_text("no run open")
    expect(page.locator("#align-cards .lab-card")).to_have_count(0)
    expect(page.locator("#stop-align")).to_be_disabled()


def path_of(request: Request) -> str:
    """The path that a request asks for."""
    return urlsplit(request.url).path


def steps_done(server: Server, run: str) -> int:
    """Alignment steps of a run so far."""
    return sum(job.done or 0 for job in server.store.jobs(run) if job.kind == "align")
