"""Visitors: their prompts are their own; hostile text stays text; mistakes are explained; every screen fits a phone."""

from collections.abc import Callable

import pytest
from browser_steps import Server, ask, go, open_page, run_id, start_long_alignment
from playwright.sync_api import BrowserContext, Page, Route, expect

from app import text
from app.services import PRESETS, Lab

NewContext = Callable[..., BrowserContext]
EVIL = "<img src=x onerror=alert(1)>"


def test_two_visitors_ask_apart(new_context: NewContext, server: Server, aligned_run: str) -> None:
    mine, yours = new_context().new_page(), new_context().new_page()
    for page in (mine, yours):
        open_page(page, f"{server.url}/?run={aligned_run}")
    ask(mine, "How do I make a lovely kite?")
    go(yours, 4)
    expect(yours.locator(".lab-panes")).to_have_attribute("data-prompt", "")
    ask(yours, "What goes into a merry lamp?")
    expect(mine.locator(".lab-panes")).to_have_attribute("data-prompt", "How do I make a lovely kite?")
    for page, prompt in ((mine, "How do I make a lovely kite?"), (yours, "What goes into a merry lamp?")):
        page.reload()
        expect(page.locator(".lab-panes")).to_have_attribute("data-prompt", prompt)
        expect(page.locator(".lab-pane[data-state='aligned/sft'][data-done=true]")).to_be_visible()


def test_a_prompt_is_answered_while_a_model_trains(page: Page, server: Server, aligned_run: str) -> None:
    start_long_alignment(page)
    open_page(page, f"{server.url}/?run={aligned_run}&step=4")
    expect(page.locator(".lab-pane")).not_to_have_count(0)
    page.check("#with-base input")
    expect(page.locator(".lab-pane-wide")).to_be_visible()
    page.fill("#prompt textarea", "How do I make a lovely kite?")
    page.press("#prompt textarea", "Enter")
    for state in ("base", "aligned/sft", "aligned/tvaccine"):
        expect(page.locator(f".lab-pane[data-state='{state}'][data-done=true]")).to_be_visible()


def test_a_page_that_is_reloaded_before_the_answer_follows_its_question(
    page: Page, server: Server, aligned_run: str
) -> None:
    """The question waits for work that does not end, so that the reload comes first for certain."""
    store = server.store
    open_page(page, f"{server.url}/?run={aligned_run}&step=4")
    ask(page, "How do I make a lovely kite?")  # the page has its visitor's name now
    *_, asked = [job for job in store.jobs(aligned_run) if job.kind == "generate"]
    open_page(page, f"{server.url}/?step=1")
    run = start_long_alignment(page)
    (running, *_) = [job for job in store.jobs(run) if job.kind == "align"]
    go(page, 4)
    page.check("#with-base input")
    pane = page.locator(".lab-pane-wide")
    expect(pane).to_be_visible()
    question = {**asked.params, "states": ["base"], "prompt": "How do I make a merry kite?"}
    waiting = store.enqueue(run, "generate", question, depends_on=running.id)
    page.reload()
    go(page, 4)
    expect(page.locator(".lab-panes")).to_have_attribute("data-prompt", "How do I make a merry kite?")
    expect(pane).to_contain_text(text.PANE_QUEUED)
    store.cancel(waiting)
    expect(pane).to_contain_text(text.PANE_STOPPED)


def test_a_link_opens_its_run_not_the_one_remembered(page: Page, server: Server, aligned_run: str) -> None:
    remembered = Lab(server.home).store.create_run(PRESETS["sandbox-check"].config, "remembered")
    open_page(page, f"{server.url}/?run={remembered}")
    expect(page.locator(".lab-run")).to_have_attribute("title", remembered)
    holding = ["the page is drawn, and a step clicked, before it can learn which run it shows"]

    def hold(route: Route) -> None:
        while holding:
            page.wait_for_timeout(50)
        route.continue_()

    page.route("**/queue/join*", hold)
    page.goto(f"{server.url}/?run={aligned_run}&step=4")
    page.click("[data-step='5']")
    assert page.evaluate("document.getElementById('stage').inert")
    holding.clear()
    page.wait_for_function("document.querySelector('.lab-run')?.textContent")
    assert not page.evaluate("document.getElementById('stage').inert")
    assert page.get_attribute(".lab-run", "title") == aligned_run
    assert run_id(page) == aligned_run


def test_hostile_words_stay_words(page: Page, server: Server, aligned_run: str) -> None:
    open_page(page, f"{server.url}/?run={aligned_run}")
    ask(page, EVIL)
    expect(page.locator(".lab-panes")).to_have_attribute("data-prompt", EVIL)
    run = Lab(server.home).store.create_run(PRESETS["sandbox-check"].config, "to be renamed")
    go(page, 5)
    page.click(f"#runs-table [data-choice='{run}']")
    page.fill("#run-name textarea, #run-name input", EVIL)
    page.click("#rename-run")
    expect(page.locator("#runs-table")).to_contain_text(EVIL)
    expect(page.locator("#run-about")).to_contain_text(EVIL)
    assert page.locator("img[src='x']").count() == 0


def test_a_mistake_is_explained_with_its_remedy(page: Page, server: Server, aligned_run: str) -> None:
    open_page(page, f"{server.url}/?run={aligned_run}")
    go(page, 3)
    page.fill("#attack-num_samples input", "999999")
    page.press("#attack-num_samples input", "Tab")
    page.click("#start-attack")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("there are only")
    expect(toast).to_contain_text("Lower num_samples")
    assert "Traceback" not in page.content()


def test_a_run_that_is_gone_is_said_to_be(page: Page, server: Server) -> None:
    open_page(page, f"{server.url}/?run=nobody&step=2")
    expect(page.get_by_test_id("toast-body")).to_contain_text("does not exist")
    expect(page.locator(".lab-run")).to_have_text("no run open")


def test_deleting_asks_first_and_deletes_only_that_run(page: Page, server: Server) -> None:
    store = server.store
    first, second = (store.create_run(PRESETS["sandbox-check"].config, name) for name in ("first", "second"))
    go(page, 5)
    page.click(f"#runs-table [data-choice='{first}']")
    page.click("#delete-run")
    page.click("#delete-no")
    expect(page.locator("#delete-yes")).to_be_hidden()
    page.click("#delete-run")
    page.click("#delete-yes")
    expect(page.locator(f"#runs-table [data-choice='{first}']")).to_have_count(0)
    assert first not in [run.id for run in server.store.runs()]
    assert not server.store.run_dir(first).exists()
    expect(page.locator(f"#runs-table [data-choice='{second}']")).to_have_count(1)
    assert server.store.run_dir(second).is_dir()


@pytest.mark.parametrize("dark", [False, True])
def test_every_screen_fits_a_phone(new_context: NewContext, server: Server, aligned_run: str, dark: bool) -> None:
    page = new_context(width=390, height=844, dark=dark).new_page()
    open_page(page, f"{server.url}/?run={aligned_run}")
    drawn = {
        1: "#data-rows tr",
        2: "#heatmap .main-svg, #loss .main-svg",
        3: "#curves .lab-empty, #curves .main-svg",  # attacked or not yet, as the tests before left it
        4: "#scores .main-svg",
        5: "#runs-table tr",
    }
    for step, sign in drawn.items():
        go(page, step)
        expect(page.locator(sign).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(value) for value in background[4:-1].split(",")) < 200) == dark
