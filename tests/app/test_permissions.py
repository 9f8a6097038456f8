"""What the page may have this machine do: whose code it runs and whose models it loads, whatever a request says."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from served_page import Served
from written_runs import answer_question, finish_alignments, small_config

import app
from app.draft import Draft
from app.page import remembered
from app.services import PRESETS, YOUR_MODEL, AttackConfig, ConfigError, Lab, LabConfig, ModelConfig, Permissions
from tvaccine_core.records import StateRecord

TRUSTING = ModelConfig(trust_remote_code=True)


def with_model(model: ModelConfig) -> LabConfig:
    return small_config().model_copy(update={"model": model})


def handlers(blocks: gr.Blocks) -> dict[str, Any]:
    """The page's handlers by name, as Gradio calls them."""
    return {getattr(item.fn, "__name__", ""): item.fn for item in blocks.fns.values() if item.fn is not None}


@pytest.fixture
def trusting_run(lab: Lab) -> str:
    """A run whose model brings code, made and aligned from the command line."""
    allowed = Lab(lab.store.home, Permissions(remote_code=True))
    run_id = allowed.start_alignment(with_model(TRUSTING))
    finish_alignments(allowed, run_id)
    return run_id


def test_code_of_a_model_runs_only_if_the_server_was_started_for_it(lab: Lab, trusting_run: str) -> None:
    jobs = lab.store.all_jobs()
    doors = (
        lambda: lab.start_alignment(with_model(TRUSTING)),
        lambda: lab.start_attack(trusting_run, AttackConfig()),
        lambda: lab.resume(trusting_run, ("align",)),
        lambda: lab.ask(trusting_run, "Who?", ["aligned/sft"], "me", 8),
    )
    for door in doors:
        with pytest.raises(ConfigError, match="trust_remote_code is on") as caught:
            door()
        assert "--trust-remote-code" in caught.value.remedy
    assert lab.store.all_jobs() == jobs
    assert len(lab.runs()) == 1


def test_a_server_started_for_it_runs_it(lab: Lab, trusting_run: str) -> None:
    allowed = Lab(lab.store.home, Permissions(remote_code=True))
    assert allowed.start_attack(trusting_run, AttackConfig()) == "a1"
    assert allowed.resume(trusting_run, ("align",)) == 0
    job = allowed.ask(trusting_run, "Who?", ["aligned/sft"], "me", 8)
    answer_question(allowed, trusting_run, job, {"aligned/sft": ("Me.", None)})


def test_a_run_with_code_can_still_be_stopped_renamed_and_deleted(lab: Lab, trusting_run: str) -> None:
    assert lab.stop(trusting_run, ("align",)) == 0
    lab.store.rename_run(trusting_run, "other")
    lab.delete_run(trusting_run)
    assert lab.runs() == []


@pytest.mark.parametrize("allowed", [False, True])
def test_the_switch_is_on_the_page_only_where_it_may_be_used(tmp_path: Path, allowed: bool) -> None:
    blocks = app.build_app(tmp_path / "home", remote_code=allowed)
    ids = {component["props"].get("elem_id") for component in blocks.get_config_file()["components"]}
    assert ("model-trust_remote_code" in ids) == allowed
    assert "model-name" in ids


def test_a_reopened_run_brings_no_code_back_in(lab: Lab, trusting_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open a run whose model brings code, then press every button that would load it."""
    monkeypatch.setattr("app.tabs.choose.predict", lambda *_, **__: pytest.fail("a process was started"))
    call = handlers(app.build_app(lab.store.home))
    memory, *filled = call["open_run"](remembered(None), trusting_run)
    with gr.Blocks():
        draft = Draft(next(iter(PRESETS.values())).config)
    values = filled[len(draft.outputs) - len(draft.inputs) :]
    base, model_values = values[0], values[len(draft.inputs) - len(draft.model_inputs) + 1 :]
    jobs = lab.store.all_jobs()
    for name, given in (
        ("start_alignment", (memory, *values)),
        ("start_attack", (memory, *values)),
        ("resume_alignment", (memory,)),
        ("resume_attack", (memory,)),
        ("go_on", (base, *model_values)),
    ):
        with pytest.raises(gr.Error, match="trust_remote_code is on"):
            call[name](*given)
    for name in ("show_fit", "show_time"):
        assert "trust_remote_code is on" in list(call[name](*values))[-1]
    lab.store.append(lab.store.jobs(trusting_run)[0].id, [StateRecord(state="aligned/sft", state_hash="h", path="s")])
    with pytest.raises(gr.Error, match="trust_remote_code is on"):
        list(call["ask_all"](memory, "Who?"))
    with pytest.raises(gr.Error, match="trust_remote_code is on"):
        call["ask"](trusting_run, "Who?")
    assert lab.store.all_jobs() == jobs


def test_what_the_page_keeps_on_the_server_cannot_be_sent(served: Served) -> None:
    """`base`, the config that settings are laid over, is the server's own: a forged one is not looked at."""
    config = served.client.config
    start = next(item for item in config["dependencies"] if item["api_name"] == "start_alignment_1")
    values = {item["id"]: item["props"].get("value") for item in config["components"]}
    states = [item["id"] for item in config["components"] if item["type"] == "state"]
    forged = with_model(ModelConfig(name="owner/evil", trust_remote_code=True)).model_dump_json()
    data = [forged if number in states else values[number] for number in start["inputs"]]
    assert forged in data
    before = len(served.lab.runs())
    body = {"data": data, "fn_index": start["id"], "session_hash": "forger"}
    assert served.post("/gradio_api/queue/join", body).status == 200
    assert served.outcome("forger")["success"]
    run = served.lab.runs()[0]
    assert run.config.model == ModelConfig()
    assert len(served.lab.runs()) == before + 1
    served.lab.delete_run(run.id)


def test_without_own_models_only_models_that_were_run_here_are_started(lab: Lab) -> None:
    own = with_model(ModelConfig(name="owner/somebody-s", activation_memory="speed"))
    closed = Lab(lab.store.home, Permissions(own_models=False))
    for config in (own, PRESETS[YOUR_MODEL].config):
        with pytest.raises(ConfigError, match="only the sandbox's model") as caught:
            closed.start_alignment(config)
        assert "--own-models" in caught.value.remedy
    assert closed.start_alignment(with_model(ModelConfig(quantization="nf4"))), "the sandbox in another storage"
    lab.store.create_run(own)  # by the machine's owner
    assert closed.start_alignment(own)


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is one that could be fetched; nothing here fetches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
