"""Screens of runs with several settings of one method, and with repairs."""

from written_runs import finish_alignments, finish_attacks, small_config

from app.page import Glance, remembered
from app.services import Lab, LabConfig
from app.tabs import attack
from app.views import Views
from tvaccine_core.config import parse_config


def write_run(lab: Lab, *defences: str | dict[str, object], attacked: bool = False) -> str:
    """A run of these defences, aligned; attacked and repaired too if wanted."""
    config = parse_config(LabConfig, {**small_config().model_dump(mode="json"), "defences": defences})
    run_id = lab.start_alignment(config)
    finish_alignments(lab, run_id)
    if attacked:
        lab.start_attack(run_id, config.attack)
        finish_attacks(lab, run_id)
    return run_id


def look_at(lab: Lab, run_id: str) -> Glance:
    view = Views(lab).view(run_id)
    return Glance(lab, view, view.choose_attack(None), remembered({"run": run_id}))


def test_sentences_of_an_attack_card_are_told_apart(lab: Lab) -> None:
    shown = attack.draw_cards(look_at(lab, write_run(lab, "sft", "sft+identity", attacked=True)))
    assert shown.count("Measured at attack step 20.") == 2
    assert shown.count("Measured at attack step 20. Repair: done.") == 1
