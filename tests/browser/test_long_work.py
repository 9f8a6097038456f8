"""Work outlives the page: reload, a second device, stop and resume, and an idle page that rests."""

from collections.abc import Callable

from browser_steps import (
    Server,
    Watch,
    go,
    open_page,
    run_id,
    start_long_alignment,
    wait_for_step,
    wait_until,
)
from playwright.sync_api import BrowserContext, Page, expect

from app.services import Lab


def steps_done(server: Server, run: str) -> int:
    return sum(job.done or 0 for job in server.store.jobs(run) if job.kind == "align")


def test_a_reload_in_mid_run_finds_it_again(page: Page, server: Server) -> None:
    run = start_long_alignment(page)
    wait_until(lambda: steps_done(server, run) > 0)
    page.goto(server.url)  # not even the address remembers the run: the browser does
    wait_for_step(page, 2, "running")
    assert run_id(page) == run
    before = steps_done(server, run)
    go(page, 2)
    page.wait_for_selector("#loss .lab-plot .main-svg", state="attached")
    wait_until(lambda: steps_done(server, run) > before)
    shown = page.locator("#align-cards .lab-card-head").first
    first = shown.inner_text()
    expect(shown).not_to_have_text(first)
    assert len([job for job in server.store.jobs(run) if job.kind == "align"]) == 2, "nothing was started anew"


def test_closing_the_page_stops_nothing_and_a_second_device_opens_the_same_run(
    new_context: Callable[..., BrowserContext], server: Server
) -> None:
    first = new_context().new_page()
    open_page(first, server.url)
    run = start_long_alignment(first)
    address = first.url
    first.close()
    before = steps_done(server, run)
    wait_until(lambda: steps_done(server, run) > before)
    phone = new_context(width=390, height=844, dark=True).new_page()
    open_page(phone, address)
    wait_for_step(phone, 2, "running")
    assert run_id(phone) == run


def test_stop_stops_and_resume_goes_on(page: Page, server: Server) -> None:
    run = start_long_alignment(page)
    wait_until(lambda: steps_done(server, run) > 2)
    page.click("#stop-align")
    wait_for_step(page, 2, "cancelled")
    assert server.store.jobs(run, states=("queued", "running")) == []
    done = steps_done(server, run)
    expect(page.locator("#stop-align")).to_be_disabled()
    expect(page.locator("#align-cards")).to_contain_text("stopped")
    assert steps_done(server, run) == done
    page.click("#resume-align")
    wait_for_step(page, 2, "running")
    wait_until(lambda: steps_done(server, run) > done)
    page.click("#stop-align")
    wait_for_step(page, 2, "cancelled")


def test_an_idle_page_asks_for_nothing_and_catches_up_when_its_reader_returns(
    new_context: Callable[..., BrowserContext], server: Server, watch: Watch, aligned_run: str
) -> None:
    page = new_context().new_page()
    open_page(page, f"{server.url}/?run={aligned_run}&step=3")
    wait_for_step(page, 2, "done")
    watch.wait_until_quiet(page)
    lab = Lab(server.home)
    lab.start_attack(aligned_run, lab.run(aligned_run).config.attack)
    page.mouse.click(5, 5)
    page.wait_for_selector("[data-step='3']:not([data-state='todo'])")
    wait_for_step(page, 3, "done")
