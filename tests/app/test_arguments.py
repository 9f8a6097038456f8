"""What is sent to endpoints is named when it will not do; a run that is gone is said to be."""

import json
import math
import sqlite3
from typing import Any

import gradio as gr
import pytest
from served_page import Served
from written_runs import finish_alignments, small_config

import app
from app.arguments import checked, one_of, row_of, text_of, texts_of
from app.page import remembered
from app.services import ConfigError, DataError, Lab
from app.tabs.choose import template_of


def handlers(lab: Lab) -> dict[str, Any]:
    """The page's handlers by name, as Gradio calls them; of scripts' endpoints those without a namesake."""
    return {item.name: item.fn for item in app.build_app(lab.store.home).fns.values() if item.fn is not None}


WRONG_ATTACKS = {
    ("text", 400): r"harmful_ratio: .* number .*'text'",
    (math.nan, 400): r"harmful_ratio: .*nan",
    (-1, 400): r"harmful_ratio: .* greater than or equal to 0 .*-1",
    (1e308, 400): r"harmful_ratio: .* less than or equal to 1 .*1e\+308",
    (0.1, 1e308): r"num_samples: .* less than or equal to 1000000",
    (0.1, math.nan): r"num_samples: .*nan",
    (0.1, 1.5): r"num_samples: .*1\.5",
    (True, 400): r"harmful_ratio: .*True",
    (0.1, None): r"num_samples: .*None",
    ("x" * 10_000, -1): r"harmful_ratio: .*; num_samples: ",
}


def test_the_arguments_of_an_attack_are_named(lab: Lab, done_run: str) -> None:
    public = {item.name: item.fn for item in reversed(app.build_app(lab.store.home).fns.values()) if item.fn}
    jobs = lab.store.all_jobs()
    for data, said in WRONG_ATTACKS.items():
        with pytest.raises(gr.Error, match=said) as caught:
            public["start_attack"](done_run, *data)
        assert "/start_attack" in caught.value.message
        assert len(caught.value.message) < 700
    assert lab.store.all_jobs() == jobs
    assert public["start_attack"](done_run, 0.5, 100.0) == "a2", "JavaScript has no whole numbers"


def test_no_value_stands_for_every_run(lab: Lab) -> None:
    for number in range(2):
        lab.start_alignment(small_config().model_copy(update={"seed": number}))
    stop = handlers(lab)["stop"]
    for run in (None, "", [], {}, 0, True, "latest", "\ud800", "x" * 500):
        with pytest.raises(gr.Error) as caught:
            stop(run)
        assert "note" not in caught.value.message
    assert not any(job.cancel_requested or job.state == "cancelled" for job in lab.store.all_jobs())


def test_over_the_wire_too(served: Served) -> None:
    """Gradio's own parsing is in between; what it refuses itself tells nothing of this machine."""
    for number, data in enumerate(
        (["x", "text", 1], ["x", -1, 1], [None, 0.1, 1], [{"a": [1]}, [], {}], ["\ud800", 0.1, 1], [["x"] * 1000, 1, 1])
    ):
        call = served.post("/gradio_api/call/start_attack", {"data": data})
        event = json.loads(call.body)["event_id"]
        answer = served.raw(
            f"GET /gradio_api/call/start_attack/{event} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode(), to_the_end=True
        )
        assert "event: error" in answer.body, (number, answer)
        assert "note " not in answer.body
        assert str(served.lab.store.home) not in answer.body
        assert "run_id" in answer.body or "harmful_ratio" in answer.body or "There is no run" in answer.body
    for body in (
        b"",
        b"[",
        b"null",
        b'{"data": 1}',
        b'{"data": {}}',
        b"[" * 100_000,
        b'{"data": [' + b"9" * 5000 + b"]}",
    ):
        answer = served.request("POST", "/gradio_api/call/list_runs", {"Content-Type": "application/json"}, body)
        assert answer.status in (200, 400, 422, 500)
        assert "Traceback" not in answer.body
        assert str(served.lab.store.home) not in answer.body


def test_a_click_names_a_row_there_is(lab: Lab) -> None:
    item = next(item for item in app.build_app(lab.store.home).fns.values() if item.name == "show_row")
    call, values = item.fn, [getattr(block, "value", None) for block in item.inputs]
    assert call
    for choice in ("40", "-1", "x", "9" * 400, "²", ""):
        with pytest.raises(gr.Error, match="There are rows 0 to 39"):
            call(gr.EventData(None, {"choice": choice}), *values)
    for data in ({}, {"choice": None}, {"choice": 3}, {"other": "1"}):
        with pytest.raises(gr.Error, match="A click names its choice"):
            call(gr.EventData(None, data), *values)
    assert call(gr.EventData(None, {"choice": "39"}), *values)[-1] == 39


def test_a_row_chosen_in_longer_data_does_not_outlive_them() -> None:
    """Row 30 was chosen, then a run was opened whose attack has five samples."""
    config = app.PRESETS["sandbox-check"].config
    short_attack = config.attack.model_copy(update={"num_samples": 5})
    config = config.model_copy(update={"attack": short_attack})
    assert template_of(config, "attack", 30) == template_of(config, "attack", 0)


def test_what_a_browser_remembers_is_taken_for_no_more_than_it_is() -> None:
    fresh = {"run": None, "attack": None, "sweep": None, "base": False}
    for rubbish in (None, 1, "x", [], [["run", "x"]], {"run": 3, "attack": [], "base": "yes", "owner": {}, "x": 1}):
        found = remembered(rubbish)  # pyright: ignore[reportArgumentType]
        assert {key: found[key] for key in fresh} == fresh
        assert set(found) == {*fresh, "owner"}
        assert len(found["owner"]) == 24
    known = {"run": "20260101-000000-abcdef", "attack": "a1", "sweep": "s1", "base": True, "owner": "0" * 24}
    assert remembered(known) == known
    assert remembered(known, attack="x" * 100)["attack"] is None


def test_a_run_deleted_elsewhere_is_said_to_be_gone_once(
    lab: Lab, done_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    monkeypatch.setattr("app.views.MIN_AGE_S", 0.0)
    call = handlers(lab)
    memory = remembered({"run": done_run, "attack": "a1"})
    seen, *drawn = call["_refresh"](memory, {})
    assert call["_say_gone"](memory) == memory
    assert "missed': None" in repr(drawn)
    lab.delete_run(done_run)
    seen, *drawn = call["_refresh"](memory, seen)
    assert f"missed': '{done_run}'" in repr(drawn), "the rail's script then raises `gone`"
    after = call["_say_gone"](memory)
    assert (after["run"], after["attack"], after["owner"]) == (None, None, memory["owner"])
    assert len(said) == 1
    assert "does not exist here (any more)" in said[0]
    assert "missed': None" in repr(call["_refresh"](after, seen))
    assert call["_say_gone"](after) == after
    assert len(said) == 1


def test_a_run_of_another_version_can_still_be_picked_and_deleted(lab: Lab, done_run: str) -> None:
    with sqlite3.connect(lab.store.home / "lab.db") as db:
        db.execute("UPDATE runs SET config = json_set(config, '$.unheard_of', 1)")
    call = handlers(lab)
    picked = call["pick"](gr.EventData(None, {"choice": done_run}))
    assert "unheard_of" in picked[2]
    assert call["delete_run"](remembered(None), done_run)[0]["run"] is None
    assert lab.runs() == []


def test_checks_name_what_was_given() -> None:
    assert one_of("a", ["a", "b"], "The part") == "a"
    with pytest.raises(ConfigError, match=r"The part is one of a, b, not \['c'\]"):
        one_of(["c"], ["a", "b"], "The part")
    with pytest.raises(ConfigError, match="not 1"):
        one_of(1, [True, 1.0], "The number")
    assert texts_of(["a"], "Defences") == ["a"]
    for wrong in (None, "a", {"a": 1}, 3, [3], [["a"]], ["a"] * 25, ["a" * 200]):
        with pytest.raises(ConfigError, match="Defences"):
            texts_of(wrong, "Defences")
    with pytest.raises(DataError, match="The prompt is text, not None"):
        text_of(None, "The prompt")
    assert row_of("0", 1) == 0


def test_an_endpoint_with_another_number_of_arguments_names_the_missing_one() -> None:
    def endpoint(first: str, second: int) -> str:
        return first * second

    assert checked(endpoint)("a", 2) == "aa"
    with pytest.raises(DataError, match="second: Field required"):
        checked(endpoint)("a")
    with pytest.raises(DataError, match=r"first: .*\(given: 1\); second: "):
        checked(endpoint)(1, None)


def test_a_script_that_worked_goes_on_working(lab: Lab) -> None:
    """The public names keep their arguments: a script that worked goes on working."""
    call = handlers(lab)
    assert call["list_runs"]() == []
    made = lab.start_alignment(small_config())
    finish_alignments(lab, made)
    assert call["run_status"](made)["status"] == "done"
