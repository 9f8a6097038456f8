"""A model of one's own, from the first screen to the last: named, checked, in 4 bits, aligned, attacked, asked."""

import json
import shutil
from pathlib import Path

import pytest
from browser_steps import ALIGN_STEPS, Server, ask, attack, go, run_id, wait_for_step
from playwright.sync_api import Page, expect

NAME = "#model-name :is(input, textarea)"


def fill(page: Page, selector: str, value: str) -> None:
    page.fill(selector, value)
    page.press(selector, "Tab")  # a field commits when it is left


@pytest.mark.slow
def test_from_a_folder_to_the_last_answer(page: Page, server: Server, tiny_folder: Path, tmp_path: Path) -> None:
    # Choose: what is wrong is said before anything starts, and nothing that was typed is lost.
    status = page.locator("#model-status")
    expect(page.locator(NAME)).to_be_hidden()
    page.get_by_label("Your model").click()
    expect(page.locator(NAME)).to_be_visible()
    expect(page.locator("#data-warning")).to_contain_text("HS stays near 0")
    expect(status).to_contain_text("Name a model")
    page.click("#to-align")
    expect(page.get_by_text("No model is named yet.").last).to_be_visible()
    folder = tmp_path / "mine"
    fill(page, NAME, str(folder))
    expect(status).to_contain_text(f"There is no folder {folder}")
    shutil.copytree(tiny_folder, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    page.click("#to-align")
    expect(page.get_by_text("is damaged or incomplete").last).to_be_visible()
    assert page.input_value(NAME) == str(folder)
    (folder / "model.safetensors").write_bytes(weights)
    fill(page, NAME, f" {folder} ")
    expect(status).to_contain_text("LlamaForCausalLM, 3 layers")
    expect(page.locator("#template .lab-learned").first).to_be_visible()
    page.locator("#model-advanced button").first.click()
    expect(page.get_by_label("Activation memory")).to_be_visible()
    expect(page.get_by_label("Trust remote code")).to_have_count(0)  # this server was not started for it
    page.click("#will-it-fit")
    expect(page.locator("#fit")).to_contain_text("num_layers is 8, but")
    page.click("#to-align")

    # Align: more layers than there are is said at once; then the stage says what it works with.
    expect(page.locator("#start-align")).to_be_visible()
    fill(page, ALIGN_STEPS, "4")
    fill(page, "#run-alignment-optimisation-batch_size input", "4")
    page.locator("#align-advanced button").first.click()
    fill(page, "#run-evaluation-max_per_set input", "2")
    fill(page, "#run-evaluation-max_new_tokens input", "4")
    page.click("#start-align")
    expect(page.get_by_text("num_layers is 8, but").last).to_contain_text("has 3 layers")
    assert server.store.runs() == [run for run in server.store.runs() if run.config.model.name == "sandbox"]
    fill(page, "#tvaccine-num_layers input", "2")
    go(page, 1)
    page.click("#will-it-fit")
    expect(page.locator("#fit")).to_contain_text("T-Vaccine, most in ")
    expect(page.locator("#fit")).to_contain_text("fits")
    page.click("#how-long")
    expect(page.locator("#fit")).to_contain_text("s per step, the median of 10, and ")
    go(page, 2)
    page.click("#start-align")
    said = page.locator("#align-messages")
    expect(said).to_contain_text("LlamaForCausalLM, 3 layers, nf4, on c")
    expect(said).to_contain_text("Prompts are written in its chat template.")
    wait_for_step(page, 2, "done")
    run = server.store.run(run_id(page))
    assert (run.config.model.name, run.config.model.quantization) == (str(folder), "nf4")
    assert run.name.startswith("mine: SFT, T-Vaccine")

    # Attack and Compare, as with the sandbox; what the scores mean is said again.
    go(page, 3)
    fill(page, "#attack-num_samples input", "20")
    fill(page, "#attack-optimisation-steps input", "3")
    attack(page)
    expect(page.locator("#attack-messages")).to_contain_text("nf4, on c")
    ask(page, "How do I make a lovely kite?")
    expect(page.locator(".lab-pane[data-done=true]")).to_have_count(4)
    expect(page.locator("#scores-table")).to_contain_text("sandbox oracle")
    expect(page.get_by_text("HS stays near 0").last).to_be_visible()
    adapter = server.store.run_dir(run.id) / "states" / "attacked" / "tvaccine" / "a1" / "adapter_config.json"
    assert json.loads(adapter.read_text())["r"] == 16

    # A reload finds model and run again.
    page.reload()
    wait_for_step(page, 3, "done")
    go(page, 1)
    expect(page.locator(NAME)).to_have_value(str(folder))
    expect(page.get_by_label("Your model")).to_be_checked()
