"""A sweep in a real browser, with real workers: written, started, watched, opened, stopped, gone on with."""

import re
from collections.abc import Callable

from browser_steps import Server, choose_check, go, open_page, wait_until
from playwright.sync_api import BrowserContext, Page, expect

NewContext = Callable[..., BrowserContext]

LONG = """
name: {name}
preset: sandbox-check
set: {{alignment.optimisation.steps: 3000}}
defences: [sft]
vary: {{seed: [0, 1, 2]}}
"""


def write(page: Page, values: str, seeds: str) -> None:
    page.get_by_label("Values").first.fill(values)
    page.fill("#sweep-seeds :is(input, textarea)", seeds)
    page.click("#sweep-write")
    expect(page.locator("#sweep-file textarea")).to_have_value(re.compile("0.5"))


def test_a_sweep_written_on_the_page_fills_its_table_and_opens_its_cells(page: Page, server: Server) -> None:
    choose_check(page)
    go(page, 6)
    expect(page.locator("#sweep-list")).to_contain_text("No sweep yet")
    write(page, "0, 0.5", "0")
    file = page.locator("#sweep-file textarea")
    assert "preset: sandbox-check" in file.input_value()
    page.click("#sweep-check")
    expect(page.locator("#sweep-plan")).to_contain_text("4 cells in 1 run.")
    page.click("#sweep-start")
    expect(page.locator("#sweep-about")).to_contain_text("of 4 cells")
    expect(page.locator(".lab-grid [data-choice]")).to_have_count(4)
    expect(page.locator("[data-step='6']")).to_have_attribute("data-state", "done")
    expect(page.locator("#sweep-about")).to_contain_text("4 of 4 cells, done")
    page.locator("#sweep-measure select").select_option(label="Outcomes after the attack, aligned names")
    expect(page.locator(".lab-grid .lab-stack")).to_have_count(4)
    page.locator(".lab-grid [data-choice]").nth(1).click()
    expect(page.locator("[data-step='4']")).to_have_attribute("aria-current", "step")
    (run,) = server.store.runs()[:1]
    expect(page.locator(".lab-run")).to_have_text(run.name)
    assert f"run={run.id}" in page.url


def test_a_sweep_stops_survives_a_reload_and_goes_on(new_context: NewContext, server: Server) -> None:
    page = new_context(width=390, height=844, dark=True).new_page()
    open_page(page, f"{server.url}/?step=6")
    page.fill("#sweep-file textarea", LONG.format(name="long one"))
    page.click("#sweep-start")
    expect(page.locator("#sweep-about")).to_contain_text("0 of 3 cells, running")
    wait_until(lambda: any(run.name == "sweep long one, seed 0" for run in server.store.runs()))
    page.click("#sweep-stop")
    expect(page.locator("#sweep-about")).to_contain_text("stopped")
    wait_until(lambda: not any(server.store.jobs(run.id, states=("queued", "running")) for run in server.store.runs()))
    page.reload()
    page.wait_for_function("document.querySelector('.lab-run')?.textContent")
    expect(page.locator("#sweep-about")).to_contain_text("long one")
    page.click("#sweep-go-on")
    expect(page.locator("#sweep-about")).to_contain_text("running")
    expect(page.locator("#sweep-stop")).to_be_enabled()
    wait_until(lambda: any(server.store.jobs(run.id, states=("running",)) for run in server.store.runs()))
    assert page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") == 0
    page.click("#sweep-stop")
    expect(page.locator("#sweep-about")).to_contain_text("stopped")
    page.click("#sweep-forget")
    expect(page.locator("#sweep-list")).not_to_contain_text("long one")


def test_a_file_that_is_no_sweep_is_refused_and_kept(page: Page, server: Server) -> None:
    go(page, 6)
    page.fill("#sweep-file textarea", "name: x\npreset: nothing")
    page.click("#sweep-start")
    expect(page.get_by_text("There is no preset").first).to_be_visible()
    expect(page.locator("#sweep-file textarea")).to_have_value("name: x\npreset: nothing")
    assert all(row.name != "x" for row in server.store.sweeps.all())
