"""The page without a browser: what Gradio draws again, and what scripts can call."""

import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from built_page import build_page
from gradio_client.exceptions import AppError
from served_page import Served
from written_runs import finish_alignments, finish_attacks, step_record

import app
from app.page import Page, remembered
from app.rail import rail_value
from app.services import PRESETS, AnswerRecord, Lab, RunNotFoundError, Verdict
from app.tabs.align import dominance_of
from app.tabs.runs import about_run, diff_table
from tvaccine_core.records import LayerScoreRecord


@pytest.fixture
def page(lab: Lab) -> Page:
    return build_page(lab)


def look(page: Page, memory: dict[str, Any], seen: Any) -> tuple[Any, Any, list[Any]]:
    """One refresh: what was seen, what the rail is told to watch, and the components that were drawn again."""
    now, rail, *updates = page._refresh(memory, seen)
    return now, rail, [update for update in updates if update != gr.skip()]


def test_a_first_look_draws_everything_and_a_second_nothing(page: Page, done_run: str) -> None:
    memory = remembered({"run": done_run})
    seen, rail, drawn = look(page, memory, {})
    assert len(drawn) == len(page._live)
    assert (rail["watched"]["run"], rail["watched"]["attack"]) == (done_run, "a1")
    assert look(page, memory, seen) == (gr.skip(), gr.skip(), [])


def test_only_what_changed_is_drawn_again(page: Page, lab: Lab, done_run: str) -> None:
    memory = remembered({"run": done_run})
    seen, _, _ = look(page, memory, {})
    lab.start_attack(done_run, lab.run(done_run).config.attack.model_copy(update={"harmful_ratio": 0.3}))
    _, rail, drawn = look(page, memory, seen)
    assert rail["watched"]["attack"] == "a2"
    assert 2 <= len(drawn) < len(page._live)


def test_a_step_is_nothing_for_gradio(page: Page, lab: Lab) -> None:
    run_id = lab.start_alignment(PRESETS["sandbox-check"].config)
    job = lab.store.claim("test")
    assert job is not None
    memory = remembered({"run": run_id})
    seen, _, _ = look(page, memory, {})
    lab.store.append(job.id, [step_record(1, 12, 2.0)])
    assert look(page, memory, seen) == (gr.skip(), gr.skip(), [])


def test_a_run_that_is_gone_leaves_an_empty_page(page: Page, lab: Lab, done_run: str) -> None:
    memory = remembered({"run": done_run})
    seen, _, _ = look(page, memory, {})
    lab.delete_run(done_run)
    _, rail, drawn = look(page, memory, seen)
    assert (rail["watched"]["run"], rail["watched"]["attack"]) == ("", "")
    assert len(drawn) > 2
    assert page.glance(memory).view is None
    assert rail_value(page.glance(memory))["run"] is None


def test_rail_tells_the_state_of_every_step(page: Page, lab: Lab, done_run: str) -> None:
    value = rail_value(page.glance(remembered({"run": done_run})))
    assert [step["state"] for step in value["steps"]] == ["done", "done", "done", "ready", "todo", "todo", "ready"]
    run_id = lab.start_alignment(PRESETS["sandbox-check"].config)
    assert rail_value(page.glance(remembered({"run": run_id})))["steps"][1]["state"] == "queued"
    job = lab.store.claim("test")
    assert job is not None
    lab.store.append(job.id, [step_record(step, 12, 1.0) for step in (1, 2, 3)])
    lab.store.heartbeat(job.id, (3, 12))
    running = rail_value(page.glance(remembered({"run": run_id}), fresh=True))["steps"][1]
    assert (running["state"], running["note"]) == ("running", "12 %, 1 s left")
    assert [step["state"] for step in rail_value(page.glance(None))["steps"]] == [*["todo"] * 6, "ready"]


def test_a_dominating_layer_is_named_with_numbers() -> None:
    record = LayerScoreRecord(
        step=0, layer_scores=(8.0, 0.4, 0.5, 0.6), layer_probabilities=(0.84, 0.04, 0.05, 0.06), harmful_loss=1.0
    )
    sentence = dominance_of(record)
    assert "Layer 0 holds 84 %" in sentence
    assert "16 times" in sentence
    even = record.model_copy(update={"layer_probabilities": (0.3, 0.3, 0.2, 0.2)})
    assert dominance_of(even) == ""


def test_a_visitor_gets_a_name_once() -> None:
    first = remembered(None)
    assert first["owner"]
    assert remembered(first, run="r")["owner"] == first["owner"]
    assert remembered(None)["owner"] != first["owner"]


def test_settings_of_two_runs_are_compared(lab: Lab) -> None:
    long, short = (
        lab.run(lab.start_alignment(PRESETS[name].config, name)) for name in ("sandbox-manners", "sandbox-check")
    )
    shown = diff_table(long, short)
    assert "alignment.optimisation.steps" in shown
    assert "alignment.optimisation.learning_rate" not in shown
    assert "same settings" in diff_table(long, long)
    assert "sandbox" in about_run(long)


def test_only_endpoints_meant_for_scripts_are_public(served: Served) -> None:
    client = served.client
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/list_runs", "/start_alignment", "/start_attack", "/stop", "/run_status", "/ask"}


def test_a_script_goes_the_whole_way(served: Served) -> None:
    client, lab = served.client, served.lab
    run_id = client.predict("sandbox-check", ["sft", "tvaccine"], api_name="/start_alignment")
    assert {"id": run_id, "name": lab.run(run_id).name, "status": "queued"} in client.predict(api_name="/list_runs")
    finish_alignments(lab, run_id)
    assert client.predict(run_id, 0.1, 100, api_name="/start_attack") == "a1"
    finish_attacks(lab, run_id)
    status = client.predict(run_id, api_name="/run_status")
    assert status["status"] == "done"
    assert status["scores"]["aligned/sft unseen_names harmful_score"] == 13
    assert {job["work"] for job in status["jobs"]} == {
        "align tvaccine",
        "align sft",
        "baseline",
        "attack sft a1",
        "attack tvaccine a1",
    }

    def answer() -> None:
        while (job := lab.store.claim("test")) is None:
            time.sleep(0.02)
        verdict = Verdict(harmful=False, refused=True, exact=False, coherent=True)
        done = [
            AnswerRecord(state=state, state_hash="h", prompt="?", text="No.", done=True, verdict=verdict)
            for state in job.params["states"]
        ]
        lab.store.append(job.id, done)
        lab.store.finish(job.id, "done")

    worker = threading.Thread(target=answer)
    worker.start()
    answers = client.predict(run_id, "How do I make a nasty drobuk?", api_name="/ask")
    worker.join()
    assert [(item["state"], item["verdict"]) for item in answers] == [
        (state, "refused")
        for state in ("base", "aligned/sft", "aligned/tvaccine", "attacked/sft/a1", "attacked/tvaccine/a1")
    ]
    assert client.predict(run_id, api_name="/stop") == 0


def test_a_script_s_mistake_is_answered_with_message_and_remedy(served: Served) -> None:
    client = served.client
    with pytest.raises(AppError, match=r"There is no preset 'nope'\. Choose one of: sandbox-intact"):
        client.predict("nope", [], api_name="/start_alignment")
    with pytest.raises(AppError, match="There is no run 'gone'"):
        client.predict("gone", api_name="/run_status")


def test_importing_twice_builds_two_pages(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert isinstance(app.build_app(tmp_path / name), gr.Blocks)


def test_nothing_is_run_without_a_run() -> None:
    from app.page import run_of

    with pytest.raises(RunNotFoundError) as caught:
        run_of(None)
    assert caught.value.remedy
