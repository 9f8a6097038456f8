"""A model of one's own on the page: what is said of it before a start, who may name one, what stages say they use."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import gradio as gr
import numpy as np
import pytest
from safetensors.numpy import save_file
from written_runs import finish_alignments

import app
from app import markup, text
from app.draft import Draft
from app.page import Page, remembered
from app.services import (
    PRESETS,
    YOUR_MODEL,
    ConfigError,
    Defence,
    Lab,
    LabConfig,
    MessageRecord,
    ModelConfig,
    Permissions,
    TVaccineError,
)
from app.tabs import align, attack
from app.tabs.choose import cost_view, data_warning, model_view, template_of, world_note
from tvaccine_core.config import TVaccineConfig

ROOT = Path(__file__).resolve().parents[2]
SANDBOX_BASE = ROOT / "assets" / "sandbox-base"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three layers by its config, the sandbox's tokenizer, weights that are no model's."""
    folder = tmp_path / "model"
    folder.mkdir()
    settings = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((SANDBOX_BASE / name).read_bytes())
    save_file({"a": np.ones((5, 11), np.float32)}, folder / "model.safetensors")
    return folder


def config_for(name: str | Path, **settings: object) -> LabConfig:
    model = ModelConfig.model_validate({"name": str(name), **settings})
    return PRESETS[YOUR_MODEL].config.model_copy(update={"model": model})


def test_what_is_known_of_a_model_is_said_and_what_is_wrong_too(folder: Path) -> None:
    assert model_view(ModelConfig()) == ""
    assert "Name a model" in model_view(PRESETS[YOUR_MODEL].config.model)
    assert "Found: LlamaForCausalLM, 3 layers, 0.0 MiB of weights." in model_view(ModelConfig(name=str(folder)))
    assert "Not on this machine yet" in model_view(ModelConfig(name="owner/not-in-any-cache"))
    missing = model_view(ModelConfig(name=f"{folder}<b>"))
    assert 'data-level="error"' in missing
    assert "&lt;b&gt;" in missing
    assert "Check the path" in missing


def test_remote_code_is_warned_of_whatever_else_is_said(folder: Path) -> None:
    for name in (folder, "owner/not-in-any-cache", folder / "missing"):
        assert text.MODEL_TRUSTED not in model_view(ModelConfig(name=str(name)))
        assert text.MODEL_TRUSTED in model_view(ModelConfig(name=str(name), trust_remote_code=True))


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Online with an empty cache, so that a hub id is one that could be fetched; nothing here fetches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_template_is_previewed_where_the_tokenizer_is(folder: Path) -> None:
    shown = template_of(config_for(folder), "alignment", 0)
    assert shown == template_of(LabConfig(), "alignment", 0)
    assert template_of(PRESETS[YOUR_MODEL].config, "alignment", 0) == markup.notice(text.TEMPLATE_UNNAMED)
    assert template_of(config_for("owner/model"), "alignment", 0) == markup.notice(text.TEMPLATE_LATER)
    (folder / "tokenizer.json").write_text("{")
    damaged = config_for(folder.rename(folder.with_name("damaged")))
    assert "cannot be read" in template_of(damaged, "alignment", 0)
    (folder.with_name("damaged") / "tokenizer.json").unlink()
    assert template_of(damaged, "alignment", 0) == markup.notice(text.TEMPLATE_LATER)


def test_what_scores_mean_is_said_for_a_model_that_is_not_the_sandbox_s(lab: Lab) -> None:
    own, sandbox = PRESETS[YOUR_MODEL].config, LabConfig()
    assert "ignorance" in data_warning(own)
    assert data_warning(sandbox) == world_note(own) == ""
    assert "alchemists" in world_note(sandbox)
    assert "4,000 steps" in cost_view(lab, own)


@pytest.mark.parametrize("name", [YOUR_MODEL, "two words/model", "./no/such/folder"])
def test_a_model_that_will_not_do_starts_nothing(lab: Lab, name: str) -> None:
    with pytest.raises(TVaccineError) as caught:
        lab.start_alignment(config_for(name))
    assert caught.value.remedy
    assert lab.runs() == []


def test_more_layers_than_the_model_has_start_nothing(lab: Lab, folder: Path) -> None:
    config = config_for(folder)
    with pytest.raises(ConfigError, match=r"num_layers is 8, but .* has 3 layers") as caught:
        lab.start_alignment(config)
    assert "1 to 3" in caught.value.remedy
    assert lab.runs() == []
    for method in (TVaccineConfig(num_layers=3), TVaccineConfig(num_layers=8, layer_choice="all")):
        assert lab.start_alignment(config.model_copy(update={"defences": (Defence(alignment=method),)}))
    assert lab.start_alignment(config_for("owner/unknown-before-it-is-loaded"))


def test_where_own_models_are_not_allowed_nobody_can_name_one(tmp_path: Path) -> None:
    with gr.Blocks():
        draft = Draft(LabConfig(), Permissions(own_models=False))
    assert YOUR_MODEL not in [value for _, value in draft.preset.choices]
    base, chosen, *values = draft.fill(LabConfig())[len(draft.outputs) - len(draft.inputs) :]
    assert draft.read(base, chosen, *values).model == ModelConfig()
    pages = {allowed: app.build_app(tmp_path / str(allowed), own_models=allowed) for allowed in (True, False)}
    fields = {
        allowed: {component["props"].get("elem_id") for component in page.get_config_file()["components"]}
        for allowed, page in pages.items()
    }
    assert "model-name" in fields[True]
    assert not [name for name in fields[False] if str(name).startswith("model-") and name != "model-status"]


@pytest.fixture
def entry() -> ModuleType:
    """The script `app.py`, which the package hides from import."""
    spec = importlib.util.spec_from_file_location("entry", ROOT / "app.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ((), True),
        (("--host", "LocalHost"), True),
        (("--host", "localhost.example.org"), False),
        (("--host", "127.example.org"), False),
        (("--host", "127.0.0.2"), True),
        (("--host", "0.0.0.0"), False),
        (("--host", "192.168.0.7"), False),
        (("--share",), False),
        (("--host", "0.0.0.0", "--own-models"), True),
        (("--no-own-models",), False),
        (("--trust-remote-code",), True),
    ],
)
def test_only_pages_on_loopback_offer_it_unless_told_otherwise(
    entry: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], allowed: bool
) -> None:
    class BuiltError(Exception):
        pass

    def build(_: Path, *, own_models: bool, remote_code: bool) -> None:
        assert own_models == allowed
        assert remote_code == ("--trust-remote-code" in arguments)
        raise BuiltError

    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    monkeypatch.setattr(app, "build_app", build)
    monkeypatch.setattr(entry, "check_address", lambda *_: None)  # not every machine has these addresses
    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["app.py", "--data-dir", str(tmp_path), *arguments])
    with pytest.raises(BuiltError):
        entry.main()


def test_what_stages_say_is_shown_once_warnings_first() -> None:
    info = MessageRecord(level="info", text="On <cpu>.")
    warning = MessageRecord(level="warning", text="Cut.", remedy="Raise it.")
    shown = markup.messages([info, warning, info])
    assert shown.count("On &lt;cpu&gt;.") == 1
    assert shown.index("Cut. Raise it.") < shown.index("On ")
    assert 'data-level="warning"' in shown
    assert markup.messages([]) == ""


def test_align_and_attack_show_what_their_jobs_said(lab: Lab) -> None:
    run_id = lab.start_alignment(PRESETS["sandbox-check"].config)
    for job in lab.store.jobs(run_id):
        lab.store.append(job.id, [MessageRecord(level="info", text=f"This is {job.kind}.")])
    finish_alignments(lab, run_id)
    lab.start_attack(run_id, lab.run(run_id).config.attack)
    for job in lab.store.jobs(run_id):
        if job.kind == "attack":
            lab.store.append(job.id, [MessageRecord(level="info", text="This is attack.")])
    page = Page(lab)
    glance = page.glance(remembered({"run": run_id}))
    assert align.draw_messages(glance).count("This is align.") == 1
    assert "baseline" not in align.draw_messages(glance)
    assert attack.draw_messages(glance).count("This is attack.") == 1
    assert align.draw_messages(page.glance(None)) == attack.draw_messages(page.glance(None)) == ""
