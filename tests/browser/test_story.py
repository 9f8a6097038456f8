"""The whole story as a newcomer lives it: choose, align, attack, compare, take away."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from browser_steps import Server, Watch, ask, attack, choose_check, go, open_page, run_id, wait_for_step
from playwright.sync_api import BrowserContext, Page, expect

from tvaccine_core.config import LabConfig
from tvaccine_core.records import StateRecord

FIGURES = {2: ("heatmap", "loss", "bars"), 3: ("curves",), 4: ("scores", "drift")}
MARK = """ids => { window.labMarks = ids.map(id => document.querySelector(`#${id} .lab-plot`)); }"""
SAME = """ids => ids.map((id, n) => document.querySelector(`#${id} .lab-plot`) === window.labMarks[n])"""


def drawn(page: Page, name: str) -> None:
    """Wait until a figure shows data."""
    page.wait_for_selector(f"#{name} .lab-plot .main-svg", state="attached")
    expect(page.locator(f"#{name} .lab-empty")).to_be_hidden()


def blur_of(page: Page, selector: str) -> str:
    return page.eval_on_selector(selector, "node => getComputedStyle(node).filter")


def test_from_the_first_screen_to_the_exported_adapter(
    page: Page, new_context: Callable[..., BrowserContext], watch: Watch, server: Server, tmp_path: Path
) -> None:
    # Choose: harmful rows are marked and blurred until clicked; the loss mask of a chosen row is in sight.
    page.get_by_label("Attack mixture").click()
    veil = "#data-rows tr[data-source='harmful'] .lab-veil >> nth=0"
    page.wait_for_selector(veil)
    assert "blur" in blur_of(page, veil)
    page.click(veil)
    assert blur_of(page, veil) == "none"
    row = page.locator("#data-rows tr[data-source='task'] [data-choice]").first
    chosen = row.inner_text()
    row.click()
    page.wait_for_function(
        "prompt => document.querySelector('#template .lab-tokens').textContent.includes(prompt)", arg=chosen
    )
    assert page.locator("#template .lab-learned").count() > 0

    # Align: every figure is drawn, and its node is the same one from the first data to the last.
    choose_check(page)
    page.evaluate(MARK, list(FIGURES[2]))
    page.click("#start-align")
    wait_for_step(page, 2, "done")
    run = run_id(page)
    for name in FIGURES[2]:
        drawn(page, name)
    expect(page.locator("#align-cards .lab-card")).to_have_count(2)

    # Attack: what it means is said before it starts.
    go(page, 3)
    page.fill("#attack-num_samples input", "50")
    page.press("#attack-num_samples input", "Tab")
    expect(page.locator("#meaning")).to_contain_text("5 of 50 samples are harmful")
    attack(page)
    drawn(page, "curves")
    expect(page.locator("#attack-cards .lab-number")).to_have_count(6)
    expect(page.locator("#attack-cards")).to_contain_text("n 8")

    # Compare: four answers with state, hash and verdict.
    go(page, 4)
    page.click("#suggested [data-choice] >> nth=0")
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    prompt = page.input_value("#prompt textarea")
    ask(page, prompt)
    panes = page.locator(".lab-pane")
    expect(panes).to_have_count(4)
    events = [stored.event for stored in server.store.events(run, kinds=("state",))]
    hashes = {event.state: event.state_hash for event in events if isinstance(event, StateRecord)}
    for pane in panes.all():
        state = pane.get_attribute("data-state")
        assert pane.locator(".lab-hash").inner_text() == hashes[state or ""][:8]
        assert pane.locator(".lab-verdict").inner_text() in ("harmful", "refused", "correct", "harmless", "gibberish")
    for name in FIGURES[4]:
        drawn(page, name)
    expect(page.locator("#scores-table")).to_contain_text("sandbox oracle")

    # A second judge reads the same answers: its scores stand apart.
    page.click("#other-judges [data-choice='refusal-keywords']")
    expect(page.locator("#other-judges table")).to_have_count(1)
    expect(page.locator("#other-judges")).to_contain_text("read by another judge: refusal keywords")

    # Somebody else opens the same run: the models are there, the prompt is not.
    other = new_context().new_page()
    open_page(other, page.url)
    expect(other.locator(".lab-pane")).to_have_count(4)
    expect(other.locator(".lab-panes")).to_have_attribute("data-prompt", "")
    expect(other.locator("#prompt textarea")).to_have_value("")
    other.close()

    # Runs: reopen, take away.
    go(page, 5)
    page.click(f"#runs-table [data-choice='{run}']")
    with page.expect_download() as download:
        page.get_by_text("Config (YAML)").click()
    download.value.save_as(tmp_path / "run.yaml")
    config = LabConfig.load(tmp_path / "run.yaml")
    assert config.attack.num_samples == 50
    with page.expect_download() as download:
        page.get_by_text("Adapter attacked/tvaccine/a1").click()
    download.value.save_as(tmp_path / "adapter.zip")
    with zipfile.ZipFile(io.BytesIO((tmp_path / "adapter.zip").read_bytes())) as archive:
        assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(archive.namelist())
    expect(page.locator("#command")).to_contain_text(f"demo --config {run}.yaml")

    # The live figures were never rebuilt: their nodes are those that were there before the start.
    go(page, 2)
    assert page.evaluate(SAME, list(FIGURES[2])) == [True] * 3

    # All of it happened on this machine, and nothing went wrong on the way.
    assert watch.requests
    assert watch.outside == []
    assert watch.console == []
