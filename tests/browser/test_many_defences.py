"""Six defences in a real browser, on a phone too; two settings of one method, written on the page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from browser_steps import Server, go, open_page, run_id, serve, wait_until
from playwright.sync_api import BrowserContext, Page, expect
from processes import free_port
from written_runs import finish_alignments, finish_attacks, small_config, write_layer_values

from app.services import Lab, LabConfig
from tvaccine_core.config import parse_config

SIX = ("sft", "tvaccine", "vaccine", "tvaccine+identity", "sft+identity", "tvaccine rho=3")
FIGURES = {2: ("heatmap", "loss", "bars"), 3: ("curves",), 4: ("scores", "drift")}

NewContext = Callable[..., BrowserContext]


@dataclass(frozen=True)
class Written:
    """A page without workers on a lab that holds a finished run of six defences."""

    server: Server
    lab: Lab
    run: str


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("written")
    lab = Lab(folder / "home")
    config = parse_config(LabConfig, {**small_config().model_dump(mode="json"), "defences": SIX})
    run = lab.start_alignment(config, "six")
    finish_alignments(lab, run)
    write_layer_values(lab, run, "sft", "sink divergence", heads=4)
    for ratio in (0.1, 0.2):
        lab.start_attack(run, config.attack.model_copy(update={"harmful_ratio": ratio}))
        finish_attacks(lab, run)
    with serve(folder / "home", free_port(), folder / "server.log", "--no-worker") as server:
        yield Written(server, lab, run)


def open_run(written: Written, page: Page, step: int) -> None:
    open_page(page, f"{written.server.url}/?run={written.run}&step={step}")
    expect(page.locator(f"[data-step='{step}']")).to_have_attribute("aria-current", "step")


def wait_for_figures(page: Page, step: int) -> None:
    for figure in FIGURES.get(step, ()):
        page.wait_for_selector(f"#{figure} .main-svg")


def sideways(page: Page) -> int:
    """Pixels by which the page is wider than the window."""
    return page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth")


def test_no_screen_scrolls_sideways_on_a_phone(written: Written, new_context: NewContext) -> None:
    page = new_context(width=390, height=844, dark=True).new_page()
    open_run(written, page, 2)
    for step in (2, 3, 4, 5, 6, 7, 1):
        go(page, step)
        wait_for_figures(page, step)
        assert sideways(page) == 0, step
        if step == 2:
            page.click("#layers-of [data-option='sft']")
            expect(page.locator("#layer-values .main-svg").first).to_be_visible()
        if step == 5:
            page.locator(".lab-row:visible").first.click()
            expect(page.get_by_role("heading", name="six")).to_be_visible()
        assert sideways(page) == 0, step


def test_words_of_the_attack_shown_end_before_the_menu_s_arrow(written: Written, new_context: NewContext) -> None:
    page = new_context(width=390, height=844).new_page()
    open_run(written, page, 3)
    expect(page.locator("#attack-shown input")).to_be_visible()
    right = "element => element.getBoundingClientRect().right"
    room = page.locator("#attack-shown input").evaluate(f"""input => ({right})(input)
        - parseFloat(getComputedStyle(input).paddingRight)""")
    arrow = page.locator("#attack-shown .icon-wrap, #attack-shown svg").first.bounding_box()
    assert arrow is not None
    assert room <= arrow["x"]


def test_a_reader_chooses_whose_layers_are_shown(written: Written, new_context: NewContext) -> None:
    page = new_context().new_page()
    open_run(written, page, 2)
    plot = page.locator("#heatmap .lab-plot")
    page.wait_for_selector("#heatmap .main-svg")
    assert str(plot.get_attribute("aria-label")).startswith("T-Vaccine, T-Vaccine + Identity:")
    page.evaluate("document.querySelector('#heatmap .lab-plot').mine = true")
    chips = page.locator("#layers-of .lab-chip")
    assert chips.all_inner_texts() == ["T-Vaccine, T-Vaccine + Identity", "T-Vaccine (rho 3)", "SFT, SFT + Identity"]
    chips.nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "document.querySelector('#heatmap .lab-plot').getAttribute('aria-label').startsWith('T-Vaccine (rho 3):')"
    )
    assert page.evaluate("document.querySelector('#heatmap .lab-plot').mine") is True, "the same node, zoom and all"
    expect(chips.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(chips.nth(1)).to_be_focused()
    expect(page.locator("#layer-values .lab-empty")).to_be_visible()
    chips.nth(2).click()
    page.wait_for_selector("#layer-values .main-svg")
    expect(page.locator("#heatmap .lab-empty")).to_be_visible()
    go(page, 3)
    go(page, 2)
    expect(chips.nth(2)).to_have_attribute("aria-pressed", "true")


def test_a_second_setting_of_a_method_is_written_started_and_shown(written: Written, new_context: NewContext) -> None:
    page = new_context().new_page()
    open_page(page, written.server.url)
    go(page, 2)
    page.fill("#defences input", "tvaccine rho=5")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.click("#start-align")
    expect(page.locator("#align-cards")).to_contain_text("T-Vaccine (rho 5)")
    run = run_id(page)
    config = written.lab.run(run).config
    assert [defence.name for defence in config.defences] == ["sft", "tvaccine", "tvaccine-rho-5"]
    assert [getattr(defence.alignment, "rho", None) for defence in config.defences] == [None, 3.0, 5.0]
    page.reload()
    expect(page.locator("#defences")).to_contain_text("tvaccine rho=5")
    written.lab.stop(run, ("align", "baseline"))
    wait_until(lambda: not written.lab.store.jobs(run, states=("queued", "running")))
