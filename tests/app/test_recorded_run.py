"""A recorded run on the page: shown to who has opened none, asked only what it was asked, never worked on."""

from pathlib import Path

import pytest
from built_page import build_page
from written_runs import finish_alignments, finish_attacks, small_config

from app import text
from app.compare.asking import recorded_value, refreshed
from app.glance import remembered
from app.page import Page
from app.rail import rail_value
from app.services import FIRST_SHOWN, Lab, RunNotFoundError, StoreError, suggestions
from app.tabs import attack, runs
from tvaccine_core.names import aligned_state
from tvaccine_core.records import GeneratedAnswer, Verdict
from tvaccine_core.store.recorded import SUFFIX, record


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page on a lab that has the first recording, and no other run."""
    folder = tmp_path_factory.mktemp("recorded")
    maker = Lab(folder / "maker")
    run_id = maker.start_alignment(small_config(), "made")
    finish_alignments(maker, run_id)
    maker.start_attack(run_id, maker.run(run_id).config.attack)
    finish_attacks(maker, run_id)
    (where, prompt), *_ = suggestions(maker.run(run_id).config)
    verdict = Verdict(refused=True, harmful=False, coherent=True)
    maker.store.save_answers(
        run_id,
        [
            GeneratedAnswer(
                state=aligned_state(method),
                state_hash="ab12",
                step=0,
                eval_set=where,
                example_id="e1",
                prompt=prompt,
                reference="So.",
                category=None,
                text=f"No, says {method}.",
                verdict=verdict,
            )
            for method in ("sft", "tvaccine")
        ],
    )
    recordings = folder / "recordings"
    recordings.mkdir()
    name = FIRST_SHOWN.removeprefix("recorded-")
    (recordings / f"{name}{SUFFIX}").write_bytes(record(maker.store, run_id, "Recorded: small"))
    (recordings / f"broken{SUFFIX}").write_bytes(b"rubbish")
    lab = Lab(folder / "home")
    assert lab.take_recordings(recordings) == [FIRST_SHOWN], "what cannot be read is left out"
    return build_page(lab)


def test_who_has_opened_no_run_sees_the_recorded_one(page: Page) -> None:
    glance = page.glance(None)
    assert glance.view is not None
    assert (glance.view.run.id, glance.recorded, glance.attack, glance.missed) == (FIRST_SHOWN, True, "a1", None)
    assert rail_value(glance)["run"]["name"] == "Recorded: small"
    assert [step["state"] for step in rail_value(glance)["steps"][:4]] == ["done", "done", "done", "ready"]
    assert "HS" in attack.draw_cards(glance)
    assert attack.draw_curves(glance)["data"]


def test_nothing_is_started_in_it(page: Page) -> None:
    glance = page.glance(None)
    assert glance.view is not None
    assert not attack.can_start(glance)
    with pytest.raises(StoreError, match="models are not here"):
        page.lab.start_attack(FIRST_SHOWN, glance.config.attack.model_copy(update={"harmful_ratio": 0.9}))
    with pytest.raises(StoreError, match="not deleted"):
        page.lab.delete_run(FIRST_SHOWN)
    assert page.lab.states(FIRST_SHOWN) == [], "there are no adapters to download"
    assert text.IS_RECORDED in runs.run_row(page.lab.run(FIRST_SHOWN), False)


def test_its_panes_show_the_first_prompt_and_answer_what_it_was_asked(page: Page) -> None:
    glance = page.glance(None)
    prompt = suggestions(glance.config)[0][1]
    shown = refreshed(page.lab, glance)
    assert shown["prompt"] == prompt
    assert [pane["text"] for pane in shown["panes"][:2]] == ["No, says sft.", "No, says tvaccine."]
    assert [pane["verdict"] for pane in shown["panes"][:2]] == ["refused", "refused"]
    assert shown["panes"][0]["hash"] == "ab12"
    assert recorded_value(page.lab, glance, f" {prompt} ")["panes"][0]["text"] == "No, says sft."
    with pytest.raises(StoreError, match="nobody asked") as caught:
        recorded_value(page.lab, glance, "Who are you?")
    assert "live" in caught.value.remedy


def test_a_run_of_one_s_own_takes_its_place(page: Page) -> None:
    own = page.lab.start_alignment(small_config(steps=7), "mine")
    glance = page.glance(remembered(None, run=own))
    assert glance.view is not None
    assert (glance.view.run.id, glance.recorded) == (own, False)
    page.lab.stop(own, ("align", "baseline"))
    page.lab.delete_run(own)
    gone = page.glance(remembered(None, run=own), fresh=True)
    assert (gone.view, gone.missed) == (None, own)
    assert page.glance(None).recorded


def test_a_lab_without_recordings_shows_no_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "home")
    assert lab.take_recordings(tmp_path / "nowhere") == []
    with pytest.raises(RunNotFoundError):
        lab.run(FIRST_SHOWN)
