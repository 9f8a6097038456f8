"""Configs from the command line: presets, files, methods, overrides, and errors that help."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from tvaccine_core.cli.options import build_config, check_json, find_run, override, write_json
from tvaccine_core.config import PRESETS, LabConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError, RunNotFoundError
from tvaccine_core.store import Store


def test_the_default_is_the_quick_preset() -> None:
    assert build_config(None, None, None) == PRESETS["sandbox-intact"].config


def test_a_model_of_one_s_own_gets_the_paper_s_schedule() -> None:
    config = build_config("your-model", None, ["model.name=owner/model"])
    assert (config.model.name, config.model.quantization) == ("owner/model", "nf4")
    optimisation = config.alignment.optimisation
    assert (optimisation.steps, optimisation.batch_size, optimisation.learning_rate) == (4000, 10, 1e-3)
    assert config.defences[1].alignment == TVaccineConfig(rho=3.0, num_layers=8)
    assert (config.attack.num_samples, config.attack.optimisation.learning_rate) == (1000, 1e-5)


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(LabConfig(seed=3).to_yaml())
    config = build_config(None, path, ["attack.harmful_ratio=0.25", "attack.adapter.target_modules=[q_proj, v_proj]"])
    assert config.seed == 3
    assert config.attack.harmful_ratio == 0.25
    assert config.attack.adapter.target_modules == ("q_proj", "v_proj")
    assert override(config, ["attack.harmful_ratio=0.1"]).attack.adapter == config.attack.adapter


def test_methods_keep_their_settings_and_are_set_by_name() -> None:
    config = build_config("sandbox-manners", None, ["defences.tvaccine.alignment.rho=2.5"], ["vaccine, tvaccine"])
    methods = [defence.alignment for defence in config.defences]
    assert methods == [VaccineConfig(perturb_every=2), TVaccineConfig(rho=2.5, perturb_every=2)]
    again = override(config, ["defences.tvaccine.alignment.num_layers=2"])
    assert again.defences[1].alignment == TVaccineConfig(rho=2.5, num_layers=2, perturb_every=2)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("attack.harmful_ratio=2", "harmful_ratio"),
        ("attack.harmful_ratio=much", "harmful_ratio"),
        ("attack.harmfull_ratio=0.1", "harmfull_ratio"),
        ("atack.harmful_ratio=0.1", "atack"),
        ("attack.harmful_ratio.p=0.1", "'harmful_ratio'|'p'"),
        ("defences.rho=1", "rho"),
        ("defences.booster.alignment.rho=1", "booster"),
        ("attack.harmful_ratio", "sets nothing"),
        ("=1", "sets nothing"),
        ("attack.task=[", "cannot be read"),
    ],
)
def test_a_wrong_override_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build_config(None, None, [assignment])
    assert raised.value.remedy


def test_wrong_wishes_are_named(tmp_path: Path) -> None:
    for arguments in (
        ("no-such-preset", None, None, None),
        ("sandbox-intact", tmp_path / "config.yaml", None, None),
        (None, tmp_path / "missing.yaml", None, None),
        (None, None, None, "sft,nope"),
        (None, None, None, "sft,sft"),
        (None, None, None, " , "),
    ):
        with pytest.raises(ConfigError) as raised:
            build_config(*arguments)
        assert raised.value.remedy


def test_runs_go_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RunNotFoundError, match="latest"):
        find_run(store, "latest")
    first, second = store.create_run(LabConfig()), store.create_run(LabConfig())
    assert find_run(store, "latest").id == second
    assert find_run(store, first).id == first
    with pytest.raises(RunNotFoundError, match="2 runs"):
        find_run(store, "2")
    with pytest.raises(RunNotFoundError, match="No run"):
        find_run(store, "nope")


class Numbers(BaseModel):
    half_ratio: float = 0.5


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(ConfigError, match="No space"):
            write_json(path, Numbers())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_json(path, Numbers())
    assert Numbers.model_validate_json(path.read_text()) == Numbers()
    write_json(None, Numbers())


def test_an_unwritable_json_file_is_found_before_the_work(tmp_path: Path) -> None:
    check_json(None)
    check_json(tmp_path / "new.json")
    for path in (tmp_path, tmp_path / "missing" / "x.json"):
        with pytest.raises(ConfigError):
            check_json(path)


def test_two_settings_of_a_method_are_named_in_one_option() -> None:
    config = build_config(
        "sandbox-check", None, ["defences.tvaccine-rho-3.alignment.num_layers=2"], ["sft,tvaccine rho=3"]
    )
    assert [defence.name for defence in config.defences] == ["sft", "tvaccine-rho-3"]
    assert config.defences[1].alignment == TVaccineConfig(rho=3, num_layers=2)
