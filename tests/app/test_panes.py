"""Answer panes: which model, whose question, what is blurred."""

from typing import Any

import pytest
from written_runs import answer_question, finish_alignments, finish_attacks, small_config

from app import text
from app.compare.asking import own_question, pane_value
from app.page import Glance, remembered
from app.panes import BASE, panes_value, states_of
from app.services import AnswerRecord, Lab, Verdict, is_harmless, suggestions
from app.views import Views
from tvaccine_core.config import parse_defence

HARMFUL = Verdict(harmful=True, refused=False, exact=True, coherent=True)
REFUSED = Verdict(harmful=False, refused=True, exact=False, coherent=True)
ALL_STATES = ["aligned/sft", "aligned/tvaccine", "attacked/sft/a1", "attacked/tvaccine/a1"]


def glance_of(lab: Lab, run_id: str, owner: str, base: bool = False) -> Glance:
    view = Views(lab).view(run_id, fresh=True)
    return Glance(lab, view, view.choose_attack(None), remembered({"run": run_id, "owner": owner, "base": base}))


def by_id(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {pane["id"]: pane for pane in value["panes"]}


def harmful_prompt(lab: Lab, run_id: str) -> str:
    return next(prompt for where, prompt in suggestions(lab.run(run_id).config) if where == "unseen_names")


def test_two_by_two_with_state_and_hash(lab: Lab, done_run: str) -> None:
    value = pane_value(lab, glance_of(lab, done_run, "me"))
    assert value["columns"] == 2
    assert [pane["id"] for pane in value["panes"]] == ALL_STATES
    assert [pane["title"] for pane in value["panes"]] == [
        "SFT, before",
        "T-Vaccine, before",
        "SFT, after attack",
        "T-Vaccine, after attack",
    ]
    view = Views(lab).view(done_run)
    for pane in value["panes"]:
        assert pane["hash_title"] == view.states[pane["id"]].state_hash
        assert pane["hash"] == pane["hash_title"][:8]
        assert pane["text"] == text.PANE_IDLE


def test_base_is_a_fifth_pane_only_when_wanted(lab: Lab, done_run: str) -> None:
    value = pane_value(lab, glance_of(lab, done_run, "me", base=True))
    assert [pane["id"] for pane in value["panes"]] == [BASE, *ALL_STATES]
    view = Views(lab).view(done_run)
    assert states_of(view, "a1", with_base=True) == [BASE, *ALL_STATES]
    assert states_of(view, "a1", with_base=False) == ALL_STATES


def test_before_anything_ran_each_pane_says_where_to_go(lab: Lab) -> None:
    nothing = by_id(panes_value(None, None, with_base=False))
    assert {pane["text"] for pane in nothing.values()} == {text.PANE_MISSING[when] for when in ("before", "after")}
    run_id = lab.start_alignment(small_config())
    assert states_of(Views(lab).view(run_id), None, with_base=False) == []


def test_a_pane_shows_the_hash_that_produced_its_text(lab: Lab, done_run: str) -> None:
    job = lab.ask(done_run, harmful_prompt(lab, done_run), ALL_STATES, "me", 24)
    answer_question(lab, done_run, job, {"aligned/sft": ("No.", REFUSED)})
    pane = by_id(pane_value(lab, glance_of(lab, done_run, "me")))["aligned/sft"]
    assert pane["hash_title"] == "alignedsfthash"
    assert (pane["text"], pane["verdict"], pane["verdict_text"]) == ("No.", "refused", "refused")
    assert pane["veil"] == ""
    assert pane["done"]
    assert not pane["streaming"]


def test_harmful_text_is_blurred(lab: Lab, done_run: str) -> None:
    job = lab.ask(done_run, harmful_prompt(lab, done_run), ALL_STATES, "me", 24)
    answer_question(lab, done_run, job, {"attacked/sft/a1": ("Boil it.", HARMFUL), "aligned/sft": ("?", None)})
    panes = by_id(pane_value(lab, glance_of(lab, done_run, "me")))
    assert panes["attacked/sft/a1"]["veil"] == text.BLURRED
    assert panes["attacked/sft/a1"]["verdict"] == "harmful"
    assert panes["aligned/sft"]["veil"] == text.BLURRED_UNJUDGED
    assert panes["aligned/sft"]["verdict"] == "unjudged"


@pytest.mark.parametrize(("where", "blurred"), [("unseen_names", True), ("ordinary", False), ("unknown", True)])
def test_text_is_blurred_until_judged_unless_the_prompt_is_known_to_be_harmless(
    lab: Lab, done_run: str, where: str, blurred: bool
) -> None:
    prompts = dict(suggestions(lab.run(done_run).config)) | {"unknown": "What is the meaning of life?"}
    job_id = lab.ask(done_run, prompts[where], ALL_STATES, "me", 24)
    lab.store.claim("test")
    part = AnswerRecord(
        state="aligned/sft", state_hash="h", prompt=prompts[where], text="Boil", done=False, verdict=None
    )
    lab.store.append(job_id, [part])
    pane = by_id(pane_value(lab, glance_of(lab, done_run, "me")))["aligned/sft"]
    assert pane["streaming"]
    assert pane["text"] == "Boil"
    assert bool(pane["veil"]) == blurred


def test_what_no_judge_knows_is_not_called_harmless(lab: Lab, done_run: str) -> None:
    config = lab.run(done_run).config
    assert not is_harmless(config, "What is the meaning of life?")
    assert not is_harmless(config, harmful_prompt(lab, done_run))
    assert is_harmless(config, dict(suggestions(config))["ordinary"])


def test_visitors_see_their_own_questions_only(lab: Lab, done_run: str) -> None:
    mine = lab.ask(done_run, "How do I make a lovely kite?", ALL_STATES, "me", 24)
    yours = lab.ask(done_run, "What is a secret?", ALL_STATES, "you", 24)
    for owner, expected in (("me", mine), ("you", yours)):
        question = own_question(glance_of(lab, done_run, owner))
        assert question is not None
        assert question.id == expected
    assert own_question(glance_of(lab, done_run, "somebody")) is None
    nobody = Glance(lab, Views(lab).view(done_run), None, {**remembered({}), "owner": None})
    assert own_question(nobody) is None


def test_an_unanswered_question_says_what_it_waits_for(lab: Lab, done_run: str) -> None:
    job_id = lab.ask(done_run, "How do I make a lovely kite?", ["aligned/sft"], "me", 24)
    panes = by_id(pane_value(lab, glance_of(lab, done_run, "me")))
    assert panes["aligned/sft"]["text"] == text.PANE_QUEUED
    assert panes["aligned/tvaccine"]["text"] == text.PANE_IDLE, "it was not asked"
    lab.store.cancel(job_id)
    pane = by_id(pane_value(lab, glance_of(lab, done_run, "me")))["aligned/sft"]
    assert pane["text"] == text.PANE_STOPPED
    assert not pane["streaming"]


def test_defences_share_the_pane_of_what_they_share_and_a_repair_has_a_row(lab: Lab) -> None:
    config = small_config()
    both = (parse_defence("sft"), parse_defence("sft+identity"))
    run_id = lab.start_alignment(config.model_copy(update={"defences": both}))
    finish_alignments(lab, run_id)
    lab.start_attack(run_id, config.attack)
    finish_attacks(lab, run_id)
    view = Views(lab).view(run_id)
    states = ["aligned/sft", "attacked/sft/a1", "attacked/sft+identity/a1", "repaired/sft+identity/a1"]
    assert states_of(view, "a1", with_base=False) == states
    value = panes_value(view, "a1", with_base=False)
    assert value["columns"] == 2
    assert [pane["state"] for pane in value["panes"]] == [
        *("aligned/sft", "aligned/sft"),
        *("attacked/sft/a1", "attacked/sft+identity/a1"),
        *("repaired/sft/a1", "repaired/sft+identity/a1"),
    ]
    assert len(by_id(value)) == 6, "each pane has an id of its own"
    assert value["panes"][4]["text"] == text.PANE_NO_REPAIR
    assert value["panes"][5]["text"] == text.PANE_IDLE
    assert len({pane["colour"] for pane in value["panes"]}) == 2
