"""What one visitor asks is nobody else's to read, and where things lie on this machine is told to no visitor."""

import io
import json
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from written_runs import answer_question

import app
from app.exports import routes
from app.guard import guarded
from app.page import remembered
from app.services import DataError, Lab, StoreError
from tvaccine_core.plain_text import without_places
from tvaccine_core.records import CheckpointRecord, MessageRecord, Verdict

SECRET = "How do I tell my landlord?"
SURROGATES = ("\ud83d", "half \ud800 a character", "\udfff\ud800")


@pytest.fixture
def asked(lab: Lab, done_run: str) -> str:
    """`done_run`, of which a visitor asked something; the worker had a word to say about that as well."""
    job = lab.ask(done_run, SECRET, ["aligned/sft"], "a-visitor-s-secret", 8)
    lab.store.append(job, [MessageRecord(level="warning", text="The answers end after 8 s, because of landlords.")])
    verdict = Verdict(harmful=False, refused=False, exact=False, coherent=True)
    answer_question(lab, done_run, job, {"aligned/sft": ("Say it to the landlord.", verdict)})
    return done_run


def files_of(lab: Lab, run_id: str, path: str = "export.zip") -> dict[str, str]:
    """A download's files by name, as text."""
    content = TestClient(Starlette(routes=routes(lab))).get(f"/lab/runs/{run_id}/{path}").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_what_a_visitor_asked_is_in_no_export(lab: Lab, asked: str) -> None:
    files = files_of(lab, asked)
    text = "".join(files.values())
    assert "landlord" not in text
    assert "a-visitor-s-secret" not in text
    kinds = {json.loads(line)["kind"] for line in files["events.jsonl"].splitlines()}
    assert {"step", "eval", "state", "drift"} <= kinds, "the rest is there"
    assert "answer" not in kinds


def test_what_a_visitor_asked_is_in_no_other_answer_of_the_server(lab: Lab, asked: str) -> None:
    client = TestClient(Starlette(routes=routes(lab)))
    for name in ("config.yaml", "scores.csv", "steps.csv"):
        assert "landlord" not in client.get(f"/lab/runs/{asked}/{name}").text
    blocks = app.build_app(lab.store.home)
    call = {item.fn.__name__: item.fn for item in blocks.fns.values() if hasattr(item.fn, "__name__")}
    other = remembered({"run": asked})
    drawn = call["_refresh"](other, {})
    told = repr([call["run_status"](asked), call["list_runs"](), drawn])
    assert "landlord" not in told
    assert "a-visitor-s-secret" not in told
    mine = remembered({"run": asked, "owner": "a-visitor-s-secret"})
    assert "landlord" in repr(call["_refresh"](mine, {})), "its own visitor sees it"


def test_checkpoints_are_told_by_name(lab: Lab, done_run: str) -> None:
    """Older runs hold whole paths."""
    job = lab.store.jobs(done_run)[0]
    folder = lab.store.run_dir(done_run) / "checkpoints" / "align" / "step-00000007"
    lab.store.append(job.id, [CheckpointRecord(step=7, path=str(folder))])
    events = [json.loads(line) for line in files_of(lab, done_run)["events.jsonl"].splitlines()]
    assert [event["path"] for event in events if event["kind"] == "checkpoint"] == ["step-00000007"]


def test_no_export_tells_where_the_lab_lies(lab: Lab, asked: str) -> None:
    for text in files_of(lab, asked).values():
        assert str(lab.store.home) not in text


def test_an_export_that_cannot_be_made_does_not_tell_where(
    lab: Lab, done_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tvaccine_core.store.export.shutil.copytree", full)
    answer = TestClient(Starlette(routes=routes(lab))).get(f"/lab/runs/{done_run}/export.zip")
    assert answer.status_code == 500
    assert "No space left" in answer.text
    assert "/tmp/" not in answer.text.replace("<temporary folder>", "")


@pytest.mark.parametrize("prompt", SURROGATES)
def test_a_prompt_that_is_no_text_is_refused_at_every_door(lab: Lab, done_run: str, prompt: str) -> None:
    blocks = app.build_app(lab.store.home)
    call = {item.fn.__name__: item.fn for item in blocks.fns.values() if hasattr(item.fn, "__name__")}
    jobs = lab.store.all_jobs()
    with pytest.raises(DataError, match="prompt is not valid Unicode") as caught:
        lab.ask(done_run, prompt, ["aligned/sft"], "me", 8)
    assert caught.value.remedy
    str(caught.value).encode()  # it can be sent
    with pytest.raises(DataError, match="prompt is not valid Unicode"):
        lab.store.enqueue(done_run, "generate", {"prompt": prompt, "states": ["base"], "owner": "command line"})
    with pytest.raises(gr.Error, match="prompt is not valid Unicode"):
        call["ask"](done_run, prompt)
    with pytest.raises(gr.Error, match="prompt is not valid Unicode"):
        list(call["ask_all"](remembered({"run": done_run}), prompt))
    assert lab.store.all_jobs() == jobs


@pytest.mark.parametrize("name", SURROGATES)
def test_a_run_s_name_is_text(lab: Lab, done_run: str, name: str) -> None:
    before = [(run.id, run.name) for run in lab.runs()]
    with pytest.raises(DataError, match="name is not valid Unicode"):
        lab.store.rename_run(done_run, name)
    with pytest.raises(DataError, match="name is not valid Unicode"):
        lab.store.create_run(lab.run(done_run).config, name)
    assert [(run.id, run.name) for run in lab.runs()] == before


@pytest.mark.parametrize("name", [*SURROGATES, "", "..", "a" * 10_000])
def test_what_is_no_run_id_is_no_run(lab: Lab, name: str) -> None:
    with pytest.raises(StoreError) as caught:
        lab.run(name)
    assert len(str(caught.value)) < 200
    str(caught.value).encode()


def test_errors_name_no_folder_of_this_machine(lab: Lab) -> None:
    """A second line: whatever an error says of the data folder, its reader gets the words for it."""
    home = lab.store.home

    def fails() -> None:
        raise StoreError(f"The run store {home / 'lab.db'}: the disk is full.", remedy=f"Look into {Path.home()}/x.")

    with pytest.raises(gr.Error) as caught:
        guarded(fails, home)()
    assert str(home) not in caught.value.message
    assert str(Path.home()) not in caught.value.message
    assert "data folder" in caught.value.message
    assert "lab.db" in caught.value.message


def test_a_broken_store_is_told_without_its_place(lab: Lab, done_run: str) -> None:
    blocks = app.build_app(lab.store.home)
    call = {item.fn.__name__: item.fn for item in blocks.fns.values() if hasattr(item.fn, "__name__")}
    lab.store.close()
    for path in lab.store.home.glob("lab.db*"):
        path.write_bytes(b"no database" * 1000)
    for name, given in (("run_status", (done_run,)), ("list_runs", ()), ("stop", (done_run,))):
        with pytest.raises(gr.Error) as caught:
            call[name](*given)
        assert str(lab.store.home) not in caught.value.message
        assert "data folder" in caught.value.message
    answer = TestClient(Starlette(routes=routes(lab))).get(f"/lab/runs/{done_run}/config.yaml")
    assert answer.status_code == 500
    assert str(lab.store.home) not in answer.text


def test_a_folder_s_words_replace_it_whole_or_not_at_all() -> None:
    home = Path("/srv/lab")
    assert without_places("in /srv/lab/runs/1, /srv/lab", home) == "in <data folder>/runs/1, <data folder>"
    assert without_places("in /srv/laboratory and /x/srv/lab.", home) == "in /srv/laboratory and /x/srv/lab."
    assert without_places("Look into /srv/lab.", home) == "Look into <data folder>."
    assert without_places("/srv/lab.db", home) == "/srv/lab.db"
    assert without_places("", home) == ""
