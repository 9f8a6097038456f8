"""A sweep's file: which cells it makes, which are the same, and what is said of mistakes."""

from pathlib import Path
from typing import Any

import pytest

from tvaccine_core import orders
from tvaccine_core.__main__ import main
from tvaccine_core.config import PRESETS, AttackConfig, TVaccineConfig, parse_config
from tvaccine_core.errors import ConfigError
from tvaccine_core.sweeps.plan import Sweep, by_run, cell_key, cells_of, run_key


def sweep(**fields: Any) -> Sweep:
    return parse_config(Sweep, {"name": "test", "preset": "sandbox-check", **fields})


def test_every_combination_is_a_cell_and_defences_stay_together() -> None:
    cells = cells_of(
        sweep(defences=["sft", "tvaccine rho=3"], vary={"seed": [0, 1], "attack.harmful_ratio": [0, 0.1, 0.5]})
    )
    assert len(cells) == 2 * 2 * 3
    assert [cell.defence.name for cell in cells[:4]] == ["sft", "tvaccine-rho-3"] * 2
    assert [(cell.config.seed, cell.attack.harmful_ratio) for cell in cells[::2]] == [
        (seed, ratio) for seed in (0, 1) for ratio in (0, 0.1, 0.5)
    ]
    assert len({cell.key for cell in cells}) == len(cells)
    assert [len(group) for group in by_run(cells)] == [6, 6], "a run for each seed: attacks and defences share it"


def test_settings_vary_together_if_they_are_given_together() -> None:
    strengths = [{"steps": 5, "learning_rate": 1e-3}, {"steps": 9, "learning_rate": 2e-3}]
    cells = cells_of(sweep(defences=["sft"], vary={"alignment.optimisation": strengths}))
    found = [cell.config.alignment.optimisation for cell in cells]
    assert [(each.steps, each.learning_rate) for each in found] == [(5, 1e-3), (9, 2e-3)]
    assert len(by_run(cells)) == 2


def test_methods_begin_with_the_settings_of_the_preset_and_may_have_their_own() -> None:
    quick = PRESETS["sandbox-manners"].config
    own = {"name": "mine", "alignment": {"name": "tvaccine", "rho": 7.0}}
    cells = cells_of(sweep(preset="sandbox-manners", defences=["tvaccine", "tvaccine rho=3", own]))
    methods = [cell.defence.alignment for cell in cells]
    assert all(isinstance(method, TVaccineConfig) for method in methods)
    preset = quick.defence("tvaccine").alignment
    assert methods[0] == preset
    assert methods[1] == preset.model_copy(update={"rho": 3.0})
    assert methods[2] == TVaccineConfig(rho=7.0)
    assert cells[2].defence.name == "mine"


def test_without_defences_the_preset_s_are_compared() -> None:
    assert [cell.defence.name for cell in cells_of(sweep())] == ["sft", "tvaccine"]


def test_a_whole_config_may_stand_in_place_of_a_preset() -> None:
    config = PRESETS["sandbox-published"].config.model_dump(mode="json")
    cells = cells_of(sweep(config=config, set={"seed": 9}))
    assert [cell.defence.name for cell in cells] == ["sft", "tvaccine", "tvaccine-rho-10"]
    assert cells[0].config.seed == 9


def test_a_key_names_what_decides_the_result_and_nothing_else() -> None:
    cell = cells_of(sweep())[1]
    renamed = cell.defence.model_copy(update={"name": "other"})
    assert cell_key(cell.config, renamed, cell.attack) == cell.key
    alone = cell.config.model_copy(update={"defences": (cell.defence,)})
    assert cell_key(alone, cell.defence, cell.attack) == cell.key, "who else is compared does not matter"
    for other in (
        cell.config.model_copy(update={"seed": 1}),
        cell.config.model_copy(update={"evaluation": cell.config.evaluation.model_copy(update={"max_per_set": 3})}),
    ):
        assert cell_key(other, cell.defence, cell.attack) != cell.key
        assert run_key(other) != run_key(cell.config)
    assert cell_key(cell.config, cell.defence, AttackConfig(seed=8)) != cell.key
    stronger = cell.defence.model_copy(update={"alignment": TVaccineConfig(rho=9.0)})
    assert cell_key(cell.config, stronger, cell.attack) != cell.key


@pytest.mark.parametrize(
    ("fields", "message", "remedy"),
    [
        ({"preset": "sandbox-chekc"}, "no preset", "sandbox-check"),
        ({"vary": {"atack.harmful_ratio": [0]}}, "no setting", "attack"),
        ({"vary": {"attack.harmful_ratio": [2]}}, "harmful_ratio", ""),
        ({"vary": {"attack.harmful_ratio": []}}, "no values", ""),
        ({"vary": {"defences.tvaccine.alignment.rho": [1]}}, "listed under `defences`", ""),
        ({"defences": ["sftt"]}, "sftt", "sft"),
        ({"vary": {"seed": list(range(150)), "attack.seed": list(range(150))}}, "45,000 cells", "fewer"),
        ({"colour": "red"}, "colour", ""),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as raised:
        cells_of(sweep(**fields))
    assert message in str(raised.value)
    assert remedy in raised.value.remedy


def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    with pytest.raises(ConfigError, match="Cannot read"):
        Sweep.load(path)
    path.write_text("- sft\n")
    with pytest.raises(ConfigError, match="mapping"):
        Sweep.load(path)
    path.write_text("name: ok\nvary: {seed: [0, 1]}\n")
    assert len(cells_of(Sweep.load(path))) == 4


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "assets" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_that_ships_can_be_made(path: Path) -> None:
    cells = cells_of(Sweep.load(path))
    assert len({cell.key for cell in cells}) == len(cells) > 1
    for group in by_run(cells):
        orders.check(group[0].config)


def test_the_documented_sweep_can_be_made(tmp_path: Path) -> None:
    _, _, rest = (ROOT / "docs" / "SWEEPS.md").read_text(encoding="utf-8").partition("```yaml\n")
    path = tmp_path / "documented.yaml"
    path.write_text(rest.partition("```")[0], encoding="utf-8")
    assert len(cells_of(Sweep.load(path))) == 3 * 3 * 3 * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--columns", "attack.harmful_ration"), ("not varied", "attack.harmful_ratio")),
        (("--output", "{file}"), ("cannot be written", "--output")),
        (("--gpus", "0,one"), ("--gpus takes numbers", "--gpus 0,1")),
    ],
)
def test_what_would_spoil_the_results_is_said_before_any_work(
    arguments: tuple[str, ...], said: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, home = tmp_path / "sweep.yaml", tmp_path / "home"
    file.write_text("name: test\npreset: sandbox-check\nvary: {attack.harmful_ratio: [0, 0.1]}\n")
    words = [argument.format(file=file) for argument in arguments]
    assert main(["sweep", str(file), "--data-dir", str(home), *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert all(each in error for each in said)
    assert not home.exists()
