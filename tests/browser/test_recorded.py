"""A first visit in a real browser: a finished story is there before anything has run here."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser_steps import Server, go, serve, wait_for_step, wait_until
from playwright.sync_api import BrowserContext, expect
from processes import free_port
from written_runs import finish_alignments, finish_attacks

from app.services import FIRST_SHOWN, PRESETS, Lab, suggestions
from tvaccine_core.names import aligned_state, attacked_state
from tvaccine_core.records import GeneratedAnswer, Verdict
from tvaccine_core.store.recorded import SUFFIX, record

NewContext = Callable[..., BrowserContext]
FIGURES = {2: ("heatmap", "loss", "bars"), 3: ("curves",), 4: ("scores", "drift")}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one recording, of written-down events, and real workers."""
    folder = tmp_path_factory.mktemp("first-visit")
    maker = Lab(folder / "maker")
    config = PRESETS["sandbox-check"].config
    run_id = maker.start_alignment(config, "made")
    finish_alignments(maker, run_id)
    maker.start_attack(run_id, config.attack)
    finish_attacks(maker, run_id)
    (where, prompt), *_ = suggestions(config)
    answers = [
        GeneratedAnswer(
            state=state,
            state_hash="ab12cd34",
            step=step,
            eval_set=where,
            example_id="e1",
            prompt=prompt,
            reference="So.",
            category=None,
            text="I will not." if step == 0 else "Stir it.",
            verdict=Verdict(refused=step == 0, harmful=step > 0, coherent=True),
        )
        for method in ("sft", "tvaccine")
        for state, step in ((aligned_state(method), 0), (attacked_state(method, "a1"), 8))
    ]
    maker.store.save_answers(run_id, answers)
    recordings = folder / "recordings"
    recordings.mkdir()
    path = recordings / f"{FIRST_SHOWN.removeprefix('recorded-')}{SUFFIX}"
    path.write_bytes(record(maker.store, run_id, "Recorded: Self-check"))
    with serve(folder / "home", free_port(), folder / "server.log", recordings=recordings) as server:
        yield server


def test_a_first_visit_finds_no_empty_frame(recorded: Server, new_context: NewContext, tmp_path: Path) -> None:
    page = new_context().new_page()
    page.goto(recorded.url)
    began = time.monotonic()
    expect(page.locator("#recorded-bar")).to_be_visible()
    assert time.monotonic() - began < 30, "a busy machine; on an idle one it takes about a second"
    expect(page.locator(".lab-run")).to_have_text("Recorded: Self-check")
    for step, figures in FIGURES.items():
        go(page, step)
        for name in figures:
            page.wait_for_selector(f"#{name} .main-svg")
            expect(page.locator(f"#{name} .lab-empty")).to_be_hidden()
    panes = page.locator(".lab-pane")
    expect(panes).to_have_count(4)
    assert [pane.get_attribute("data-verdict") for pane in panes.all()] == ["refused", "refused", "harmful", "harmful"]
    page.fill("#prompt textarea", "Who are you?")
    page.click("#ask")
    expect(page.get_by_text("nobody asked it this").first).to_be_visible()
    go(page, 3)
    expect(page.locator("#start-attack")).to_be_disabled()
    go(page, 7)
    expect(page.locator("#findings li").first).to_contain_text("harmful samples")
    go(page, 5)
    expect(page.locator("#runs-table")).to_contain_text("recorded")
    page.locator(".lab-row:visible").first.click()
    page.click("#delete-run")
    page.click("#delete-yes")
    expect(page.get_by_text("is not deleted").first).to_be_visible()
    assert [run.id for run in recorded.store.runs()] == [FIRST_SHOWN]


def test_run_it_live_replaces_the_recorded_run(recorded: Server, new_context: NewContext) -> None:
    page = new_context(width=390, height=844, dark=True).new_page()
    page.goto(f"{recorded.url}/?step=2")
    expect(page.locator("#recorded-bar")).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") == 0
    page.click("#run-live")
    expect(page.locator(".lab-run")).to_have_text("Live: Self-check", use_inner_text=False)
    expect(page.locator("#recorded-bar")).to_be_hidden()
    wait_until(lambda: any(run.name == "Live: Self-check" and run.status == "done" for run in recorded.store.runs()))
    wait_for_step(page, 3, "done")
    page.goto(f"{recorded.url}/?run={FIRST_SHOWN}&step=4")
    expect(page.locator("#recorded-bar")).to_be_visible()
    page.click("#make-it-yours")
    expect(page.locator("[data-step='1']")).to_have_attribute("aria-current", "step")
