"""Whatever is sent to the page's endpoints, public and private, is answered in the lab's own words or works.

The words of an unforeseen fault ("… (note 1a2b3c)") are for faults of ours, never for what somebody sent.
"""

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.blocks import BlockFunction
from hypothesis import given, settings
from hypothesis import strategies as st
from written_runs import finish_alignments, finish_attacks, small_config

import app
from app.page import remembered
from app.services import Lab, ModelError

NUM_EXAMPLES = 25
"""For each endpoint."""
PUBLIC = ("list_runs", "start_alignment", "start_attack", "stop", "run_status", "ask")
PRIVATE = (
    *("load", "_refresh", "_say_gone", "choose_preset", "show_config", "show_model", "show_fit", "show_time"),
    *("go_on", "show_part", "show_row", "start_alignment", "stop_alignment", "resume_alignment", "show_groups"),
    *("start_attack", "stop_attack", "resume_attack", "show_meaning", "show_attack", "ask_all", "follow_on"),
    *(
        "choose_base",
        "take_suggestion",
        "let_judge",
        "draw",
        "pick",
        "open_run",
        "ask_delete",
        "delete_run",
        "rename_run",
    ),
    *("rename_run", "show_diff", "keep_run", "run_live"),
    *("show_source", "show_second", "write_file", "check_file", "start_sweep", "show_sweep"),
    *("stop_sweep", "let_go_on", "forget_sweep", "open_cell"),
)
SWEEP = "{name: fuzz, preset: sandbox-check, vary: {seed: [0, 1]}}"

PICKED = ("open_run", "ask_delete", "delete_run", "rename_run", "show_diff")
WORDS = (
    "sft",
    "tvaccine",
    "a1",
    "sandbox-check",
    "your-model",
    "alignment",
    "attack",
    "base",
    "run",
    "owner",
    "choice",
)
NUMBERS = (0, 1, -1, 39, 40, 10**30, 10**4000, 2**63, 1e308, -1e308, 1e-320, math.nan, math.inf, -math.inf, True)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(WORDS)
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(("\ud800", "\x00", "x" * 5000, "../..", "<b>", "NaN", "1e999", "9" * 5000))
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner),
    max_leaves=8,
)


class Bench:
    """A page on a lab with one finished run, and its endpoints, called as Gradio calls them but for the wire."""

    def __init__(self, home: Path) -> None:
        self.lab = Lab(home)
        self.run_id = self.make_run()
        self.lab.sweeps.start(SWEEP)
        functions = [item for item in app.build_app(home).fns.values() if item.fn is not None]
        self.public = {item.name: item for item in functions if item.api_visibility == "public"}
        self.private = {item.name: item for item in functions if item.api_visibility != "public"}

    def make_run(self) -> str:
        """A run that is aligned and attacked."""
        run_id = self.lab.start_alignment(small_config(steps=4), "small run")
        finish_alignments(self.lab, run_id)
        self.lab.start_attack(run_id, self.lab.run(run_id).config.attack)
        finish_attacks(self.lab, run_id)
        return run_id

    def usual(self, item: BlockFunction) -> list[Any]:
        """What an honest page would send: each input as it is shown, a memory with the run open, the run picked."""
        values: list[Any] = []
        for block in item.inputs:
            value = getattr(block, "value", None)
            if isinstance(block, gr.BrowserState):
                value = remembered({"run": self.run_id})
            elif isinstance(block, gr.State) and value is None and item.name in PICKED:
                value = self.run_id
            values.append(value)
        return values

    def call(self, item: BlockFunction, values: list[Any], special: Any) -> None:
        """Call an endpoint; `special` is what the event says, or the run that the address asks for."""
        message = self._error(item, values, special)
        assert "(note " not in message, message
        message.encode()
        assert len(message) < 5000
        for run in self.lab.runs():
            self.lab.stop(run.id, ("align", "baseline", "attack", "generate"))
            if run.id != self.run_id:
                self.lab.delete_run(run.id)
        if not self.lab.runs():
            self.run_id = self.make_run()
        for row in self.lab.sweeps.rows():
            self.lab.sweeps.forget(row.id)
        self.lab.sweeps.start(SWEEP)

    def _error(self, item: BlockFunction, values: list[Any], special: Any) -> str:
        """What a caller is told that went wrong; empty if nothing did."""
        assert item.fn is not None
        extra: dict[str, Any] = {}
        for name, kind in inspect.get_annotations(item.fn, eval_str=True).items():
            if kind is gr.EventData:
                extra[name] = gr.EventData(None, special)
            elif kind is gr.Request:
                extra[name] = SimpleNamespace(query_params={"run": special} if isinstance(special, str) else {})
        left = iter(values)
        kinds = inspect.signature(item.fn).parameters.values()
        named = [kind.name for kind in kinds if kind.kind is not kind.VAR_POSITIONAL and kind.default is kind.empty]
        first = [extra[name] if name in extra else next(left) for name in named]
        try:
            result = item.fn(*first, *left)
            if inspect.isgenerator(result):
                list(result)
        except gr.Error as error:
            return error.message
        return ""


def not_here(*_: object, **__: object) -> None:
    raise ModelError("Nothing is predicted here.", remedy="It would take a process.")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.compare.asking.PATIENCE_S", 0.0)  # no worker answers here
        patch.setattr("app.api.ANSWER_WAIT_S", 0.0)
        patch.setattr("app.tabs.choose.predict", not_here)
        yield Bench(tmp_path_factory.mktemp("fuzz") / "home")


def test_every_endpoint_is_tried(bench: Bench) -> None:
    assert set(bench.public) == set(PUBLIC)
    assert set(bench.private) == set(PRIVATE)


@pytest.mark.parametrize("name", PRIVATE)
def test_what_an_honest_page_sends_works(bench: Bench, name: str) -> None:
    item = bench.private[name]
    assert item
    bench.call(item, bench.usual(item), {"choice": "0"})


@pytest.mark.parametrize("name", PUBLIC)
@settings(max_examples=NUM_EXAMPLES)
@given(data=st.data())
def test_scripts_may_send_anything(bench: Bench, name: str, data: st.DataObject) -> None:
    item = bench.public[name]
    arguments = JSON | st.just(bench.run_id) | st.just("sandbox-check")
    bench.call(item, [data.draw(arguments) for _ in item.inputs], None)


@pytest.mark.parametrize("name", PRIVATE)
@settings(max_examples=NUM_EXAMPLES)
@given(data=st.data())
def test_pages_may_send_anything(bench: Bench, name: str, data: st.DataObject) -> None:
    """Any value in any place; what the server keeps for itself (`gr.State`) no page can send."""
    item = bench.private[name]
    values = bench.usual(item)
    open_to_all = [number for number, block in enumerate(item.inputs) if not isinstance(block, gr.State)]
    for number in data.draw(
        st.lists(st.sampled_from(open_to_all), max_size=3, unique=True) if open_to_all else st.just([])
    ):
        usual = values[number]
        if isinstance(item.inputs[number], gr.BrowserState):
            keys = st.sampled_from(("run", "attack", "base", "owner", "other"))
            values[number] = data.draw(JSON | st.dictionaries(keys, JSON).map(lambda some, usual=usual: usual | some))
        else:
            values[number] = data.draw(JSON)
    bench.call(item, values, data.draw(JSON | JSON.map(lambda choice: {"choice": choice})))
