"""Screens of runs with several settings of one method, and with repairs."""

import re

import gradio as gr
import pytest
from written_runs import finish_alignments, finish_attacks, small_config, write_layer_values

from app import text
from app.compare import scores
from app.draft import Draft
from app.page import Glance, remembered
from app.services import Lab, LabConfig
from app.tabs import align, attack, choose
from app.views import Views
from tvaccine_core.config import TVaccineConfig, parse_config

STRONG: dict[str, object] = {"name": "strong", "alignment": {"name": "tvaccine", "rho": 3}}


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


def test_each_alignment_that_scores_layers_has_a_heat_map_of_its_own(lab: Lab) -> None:
    glance = look_at(lab, write_run(lab, "sft", "tvaccine", STRONG, "tvaccine+identity"))
    assert glance.view is not None
    first, second = (key for key in glance.view.config.alignments() if key != "sft")
    options = align.draw_choice(glance)["options"]
    assert [option["id"] for option in options] == [first, second]
    assert [option["title"] for option in options] == ["T-Vaccine, T-Vaccine + Identity", "strong"]
    for draw in (align.draw_heatmap, align.draw_bars, align.draw_dominance):
        assert list(draw(glance)["by"]) == [first, second]
    maps = align.draw_heatmap(glance)["by"]
    assert all(spec["data"] for spec in maps.values())
    assert "strong" in maps[second]["meta"]["label"]
    colours = [spec["data"][0]["marker"]["line"]["color"] for spec in align.draw_bars(glance)["by"].values()]
    assert colours == [option["colour"] for option in options]


def test_heat_maps_of_one_run_share_their_colours(lab: Lab) -> None:
    """Else the same colour would mean another number in the next one."""
    run_id = write_run(lab, "tvaccine", STRONG)
    maps = align.draw_heatmap(look_at(lab, run_id))["by"].values()
    heats = [spec["data"][0] for spec in maps]
    assert len({(heat["zmin"], heat["zmax"], *heat["colorbar"]["tickvals"]) for heat in heats}) == 1
    assert heats[0]["zmin"] == pytest.approx(min(min(row) for heat in heats for row in heat["z"]), abs=1e-3)
    assert heats[0]["zmax"] == pytest.approx(max(max(row) for heat in heats for row in heat["z"]), abs=1e-3)


def test_an_alignment_that_only_measures_layers_can_be_chosen_too(lab: Lab) -> None:
    run_id = write_run(lab, "sft", "tvaccine")
    write_layer_values(lab, run_id, "sft", "sink divergence", heads=4)
    glance = look_at(lab, run_id)
    assert [option["id"] for option in align.draw_choice(glance)["options"]] == ["tvaccine", "sft"]
    heat, values = align.draw_heatmap(glance)["by"], align.draw_values(glance)["by"]
    assert heat["sft"]["meta"]["empty"] == text.ALIGNMENT_NOT_SCORED
    assert values["tvaccine"]["meta"]["empty"] == text.ALIGNMENT_NOT_MEASURED
    assert heat["tvaccine"]["data"]
    assert values["sft"]["data"]


def test_a_run_that_scores_no_layers_says_so_and_offers_no_choice(lab: Lab) -> None:
    glance = look_at(lab, write_run(lab, "sft"))
    assert align.draw_heatmap(glance)["meta"]["empty"] == text.HEATMAP_NOT_SCORED
    assert align.draw_choice(glance)["options"] == []


def test_a_second_setting_written_on_the_page_has_a_clear_name_everywhere(lab: Lab) -> None:
    with gr.Blocks():
        draft = Draft(small_config())
    base, _, *values = draft.fill(small_config())[len(draft.outputs) - len(draft.inputs) :]
    config = draft.read(base, ["sft", "tvaccine", "tvaccine rho=3"], *values)
    run_id = lab.start_alignment(config, text.run_name(config))
    assert lab.run(run_id).name == "SFT, T-Vaccine, T-Vaccine (rho 3), 40 steps, seed 0"
    finish_alignments(lab, run_id)
    lab.start_attack(run_id, config.attack)
    finish_attacks(lab, run_id)
    glance = look_at(lab, run_id)
    titles = ["SFT", "T-Vaccine", "T-Vaccine (rho 3)"]
    assert glance.view is not None
    assert [look.title for look in glance.view.looks.values()] == titles
    assert len({(look.colour, look.marker, look.dash) for look in glance.view.looks.values()}) == 3
    assert "attacked/tvaccine-rho-3/a1" in glance.view.states
    assert [entry["text"] for entry in align.draw_loss(glance)["meta"]["key"]] == titles
    assert [entry["text"] for entry in attack.draw_curves(glance)["meta"]["key"]][:3] == titles
    assert "T-Vaccine (rho 3), after attack" in scores.draw_table(glance)


def test_the_cost_of_a_run_counts_every_alignment_and_shared_ones_once(lab: Lab) -> None:
    glance = look_at(lab, write_run(lab, "tvaccine", "tvaccine+identity", "tvaccine rho=3", "tvaccine rho=2"))
    assert glance.view is not None
    three = choose.cost_view(lab, glance.view.config)
    assert "T-Vaccine, T-Vaccine + Identity; T-Vaccine (rho 3); T-Vaccine (rho 2): 40 steps each" in three
    one = choose.cost_view(lab, small_config(methods=[TVaccineConfig()]))
    assert "T-Vaccine: 40 steps<" in one
    seconds = [re.search(r"about (\d+) s", shown) for shown in (one, three)]
    assert seconds[0]
    assert seconds[1]
    assert int(seconds[0][1]) < int(seconds[1][1])
