"""The Sweep screen: the file it writes, the table it draws of cells made so far, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from written_cells import cell, point
from written_runs import finish_alignments, finish_attacks

from app import text
from app.findings import grid
from app.services import PRESETS, ConfigError, Lab, Permissions, StoreError, sweep_files, sweep_text
from app.services.sweeps import MAX_WAITING
from app.tabs.sweep import varied
from tvaccine_core.config import parse_config
from tvaccine_core.methods import with_defences
from tvaccine_core.sweeps.drive import run_sweep
from tvaccine_core.sweeps.measured import Point
from tvaccine_core.sweeps.plan import Sweep, cells_of

SPEC = """
name: look
preset: sandbox-check
set: {attack.eval_every: 4}
defences: [sft, tvaccine]
vary:
  seed: [0, 1]
  attack.harmful_ratio: [0, 0.1]
  alignment.mix.ordinary: [0, 1]
"""


class FullError(Exception):
    """Enough is made."""


def make(lab: Lab, sweep_id: str, runs: int) -> None:
    """Make the cells of so many runs, and report them as the driver does."""
    row = lab.store.sweeps.get(sweep_id)
    made: set[str] = set()

    def pause() -> None:
        for run in lab.runs():
            finish_alignments(lab, run.id)
            for _ in range(4):
                finish_attacks(lab, run.id)
            made.add(run.id)
        if len(made) >= runs:
            raise FullError

    with pytest.raises(FullError):
        run_sweep(lab.store, parse_config(Sweep, row.spec), at_once=1, pause=pause)
    lab.store.sweeps.report(sweep_id, len(lab.sweeps.view(sweep_id).results), (), None)


def test_the_table_holds_what_is_made_and_says_what_is_not(lab: Lab) -> None:
    sweep_id = lab.sweeps.start(SPEC)
    view = lab.sweeps.view(sweep_id)
    assert (view.row.total, view.row.done, view.results, grid.tables(view)) == (16, 0, {}, {})
    make(lab, sweep_id, 1)
    view = lab.sweeps.view(sweep_id)
    assert 0 < len(view.results) < 16
    tables = grid.tables(view)
    titles = [title for title, _ in tables.values()]
    assert titles[0] == "HS at FA ≥ 90, aligned names"
    assert titles[-1] == "Outcomes after the attack, never-aligned names"
    _, shown = tables["m1"]
    assert shown.count("data-choice") == 4, "two defences, two columns, one of two groups"
    assert shown.count("1 of 2") == 4
    assert shown.count("0 of 2") == 4
    assert "alignment.mix.ordinary 0" in shown
    assert shown.index('<th scope="col">0</th>') < shown.index('<th scope="col">0.1</th>')
    rows = grid.cell_rows(view)
    assert rows.count(text.SWEEP_CELL_TODO) == 16 - len(view.results)
    assert rows.count("data-choice") == len(view.results)


def test_a_square_opens_a_run_that_has_its_cell(lab: Lab) -> None:
    sweep_id = lab.sweeps.start(SPEC)
    make(lab, sweep_id, 1)
    view = lab.sweeps.view(sweep_id)
    for key, result in view.results.items():
        run = lab.run(result.run_id)
        (cell,) = [cell for cell in view.cells if cell.key == key]
        assert run.config.seed == cell.config.seed
        assert result.defence in [defence.name for defence in run.config.defences]


def test_a_view_is_read_again_only_where_a_run_has_changed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.services import sweeps

    sweep_id = lab.sweeps.start(SPEC)
    make(lab, sweep_id, 1)
    collected: list[str] = []
    real = sweeps.collect

    def collect(store: Any, run_id: str) -> Any:
        collected.append(run_id)
        return real(store, run_id)

    monkeypatch.setattr(sweeps, "collect", collect)
    lab.sweeps._scores.clear()
    first = lab.sweeps.view(sweep_id)
    assert len(collected) == 1
    assert lab.sweeps.view(sweep_id).results == first.results
    assert len(collected) == 1


def test_the_page_checks_a_sweep_before_it_is_queued(lab: Lab) -> None:
    assert lab.sweeps.plan(SPEC).cells == 16
    for wrong, words in (
        (SPEC.replace("sandbox-check", "sandbox-chek"), "preset"),
        (SPEC.replace("harmful_ratio", "harmful_ration"), "harmful_ration"),
        (SPEC.replace("[0, 0.1]", "[0, 7]"), "harmful_ratio"),
        (SPEC.replace("[sft, tvaccine]", "[sft, tvaccine num_layers=99]"), "layers"),
        (SPEC.replace("seed: [0, 1]", f"seed: {list(range(200))}"), "400"),
        ("", "mapping"),
        ("name: [", "line"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            lab.sweeps.start(wrong)
        assert caught.value.remedy
    assert lab.sweeps.rows() == []


def test_visitors_cannot_sweep_over_models_that_they_may_not_load(tmp_path: Path) -> None:
    lab = Lab(tmp_path, Permissions(own_models=False))
    with pytest.raises(ConfigError, match="loads only the sandbox"):
        lab.sweeps.start(SPEC.replace("eval_every: 4", "eval_every: 4, model.name: somebody/else"))


@pytest.mark.parametrize("preset", ["sandbox-intact", "sandbox-published", "sandbox-manners", "sandbox-check"])
def test_a_written_file_means_the_run_that_it_was_written_from(preset: str) -> None:
    config = PRESETS[preset].config
    changed = config.model_copy(update={"attack": config.attack.model_copy(update={"num_samples": 123})})
    changed = with_defences(changed, ["sft", "tvaccine rho=7", "vaccine"])
    written = Sweep.read(sweep_text(changed, "x", {"seed": [0], "attack.harmful_ratio": [0, 0.3]}))
    cells = cells_of(written)
    assert written.preset == preset
    assert [cell.varied["attack.harmful_ratio"] for cell in cells] == [0, 0, 0, 0.3, 0.3, 0.3]
    expected = changed.model_copy(update={"attack": changed.attack.model_copy(update={"harmful_ratio": 0.3})})
    assert cells[-1].config == expected.model_copy(update={"seed": 0})


def test_the_fields_become_values_or_say_what_is_wrong(lab: Lab) -> None:
    config = PRESETS["sandbox-check"].config
    assert varied(config, "attack.harmful_ratio", "0, 5e-2", "attack.task", "sentiment, topic", "0") == {
        "seed": [0],
        "attack.harmful_ratio": [0, 0.05],
        "attack.task": ["sentiment", "topic"],
    }
    assert varied(config, "attack.harmful_ratio", "0", "", "", "0, 1")["seed"] == [0, 1]
    for given, words in (
        (("nonsense", "0", "", "", "0"), "not a setting"),
        (("attack.harmful_ratio", "", "", "", "0"), "no values"),
        (("attack.harmful_ratio", "0", "attack.harmful_ratio", "0", "0"), "twice"),
        (("attack.harmful_ratio", "0]", "", "", "0"), "harmful_ratio"),
        (("attack.harmful_ratio", "0", "", "", ""), "seed"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            varied(config, *given)
        assert caught.value.remedy


def test_every_file_that_ships_can_be_started_from_the_page(lab: Lab) -> None:
    assert sweep_files()
    for name, written in sweep_files().items():
        assert lab.sweeps.plan(written).cells > 0, name


def test_a_sweep_without_a_harmful_set_is_drawn_too(lab: Lab) -> None:
    """It once took the page down: a table asked for HS where no cell has one."""
    sweep_id = lab.sweeps.start(SPEC.replace("eval_every: 4", "eval_every: 4, data.evaluation_sets: [ordinary]"))
    view = lab.sweeps.view(sweep_id)
    results = [cell("sft", 0, 1, point(0, 1, 50)) for _ in view.cells]
    bare = [result.model_copy(update={"curve": (without_harm(result.curve[0]),)}) for result in results]
    view = replace(view, results={one.key: result for one, result in zip(view.cells, bare, strict=True)})
    assert "–" in grid.cell_rows(view)
    assert grid.tables(view)


def without_harm(state: Point) -> Point:
    scores = {name: each for name, each in state.scores.items() if "harmful_score" not in each}
    return state.model_copy(update={"scores": scores, "outcomes": {}})


def test_a_sweep_is_read_back_as_it_was_written(lab: Lab) -> None:
    written = SPEC.replace("name: look", 'name: "🛡  look"')
    sweep_id = lab.sweeps.start(written)
    view = lab.sweeps.view(sweep_id)
    assert view.row.name == "🛡 look"
    assert list(view.cells[0].varied) == ["seed", "attack.harmful_ratio", "alignment.mix.ordinary"]
    assert lab.sweeps.start(written) == sweep_id


def test_only_so_many_sweeps_wait(lab: Lab) -> None:
    for number in range(MAX_WAITING):
        lab.sweeps.start(SPEC.replace("name: look", f"name: look {number}"))
    with pytest.raises(ConfigError, match="already"):
        lab.sweeps.start(SPEC.replace("name: look", "name: one more"))


def test_names_of_defences_are_not_varied_by_a_blank_either(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="Defences are listed"):
        lab.sweeps.start(SPEC + "  ' defences.sft.name': [x, y]\n")


def test_a_sweep_that_is_gone_is_said_to_be_gone(lab: Lab) -> None:
    sweep_id = lab.sweeps.start(SPEC)
    lab.sweeps.forget(sweep_id)
    for act in (lab.sweeps.stop, lab.sweeps.go_on, lab.sweeps.forget, lab.sweeps.view):
        with pytest.raises(StoreError, match="no sweep"):
            act(sweep_id)
