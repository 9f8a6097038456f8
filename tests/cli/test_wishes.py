"""Wishes that cannot be granted: each ends at once in a message and a remedy, and nothing is queued."""

import time
from pathlib import Path
from typing import Any

import pytest

from tvaccine_core.__main__ import main
from tvaccine_core.cli import stages
from tvaccine_core.cli.options import build_config, override
from tvaccine_core.config import PRESETS, LabConfig
from tvaccine_core.errors import ConfigError
from tvaccine_core.store import Store

CHECK = PRESETS["sandbox-check"].config


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that commands use. No worker is started."""

    def follow(*_: object, **__: object) -> None:
        raise AssertionError("something was queued")

    monkeypatch.setattr(stages, "follow", follow)
    monkeypatch.setenv("TVACCINE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "home")


def error_of(*assignments: str) -> str:
    """Message and remedy for overrides that are refused; short, whatever was given."""
    began = time.process_time()
    with pytest.raises(ConfigError) as raised:
        override(CHECK, assignments)
    assert time.process_time() - began < 3
    assert raised.value.remedy
    assert len(str(raised.value)) < 600
    assert len(raised.value.remedy) < 1000
    return f"{raised.value} {raised.value.remedy}"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("foo=1", ("'foo'", "There are: seed, model, defences, data, alignment, attack, evaluation")),
        ("sed=1", ("Did you mean seed?",)),
        ("Seed=1", ("Did you mean seed?",)),
        ("harmful_ratio=0.2", ("Did you mean attack.harmful_ratio?",)),
        ("steps=3", ("alignment.optimisation.steps", "attack.optimisation.steps")),
        ("attack.optimisation.learning_rat=1", ("Did you mean learning_rate?", "batch_size")),
        ("defences.tvaccine.alignment.nope=1", ("'nope'", "num_layers", "rho")),
        ("defences.tvaccin.alignment.rho=1", ("Did you mean tvaccine?", "There are: sft, tvaccine")),
        ("defences.vaccine.alignment.rho=1", ("'vaccine'", "sft, tvaccine")),
        ("seed.x=1", ("no parts",)),
        ("model=sandbox", ("model", "name", "'sandbox'")),
        ("model=", ("model", "None")),
        ("model=[1]", ("model", "[1]")),
        ("defences.tvaccine.alignment=5", ("alignment", "rho")),
        ("defences=[nope]", ("defences.0", "'nope'")),
        ("defences=[]", ("defences",)),
        ("defences=sft", ("defences",)),
        ("model={nope: 1}", ("'nope'", "quantization")),
        ("model={name: {a: 1}}", ("model.name",)),
        ("attack.harmful_ratio", ("sets nothing", "FIELD=VALUE")),
        ("=1", ("sets nothing",)),
        (" =1", ("sets nothing",)),
        ("", ("sets nothing",)),
        ("a..b=1", ("'a..b=1'", "dots")),
        ("attack..task=x", ("dots",)),
        (".attack.task=x", ("dots",)),
        ("attack.=1", ("dots",)),
        (".=1", ("dots",)),
        ("seed=true", ("seed", "true")),
        ("seed=1.5", ("seed", "1.5")),
        ("seed=-1", ("seed", "-1")),
        ("seed=.nan", ("seed", "nan")),
        ("attack.harmful_ratio=true", ("attack.harmful_ratio", "true")),
        ("attack.harmful_ratio=nan", ("attack.harmful_ratio", "finite")),
        ("attack.harmful_ratio=.inf", ("attack.harmful_ratio", "finite")),
        ("attack.optimisation.steps=1e300", ("attack.optimisation.steps",)),
        ("attack.optimisation.learning_rate=1e999", ("finite",)),
        ("seed=2020-13-45", ("seed", "2020-13-45")),
        (f"seed={'1' * 5001}", ("5,001 digits", "line 1")),
        (f"seed={'[' * 5000}", ("deep",)),
        (f"seed={'x' * 20_000}", ("20,000 characters",)),
        (f"seed={'x' * 9_000}", ("xxx",)),
        (f"{'x' * 100_000}=1", ("xxx",)),
        (f"{'a.' * 50_000}b=1", ("'a'",)),
        ("seed=&a 1", ("anchor",)),
        ("seed=*a", ("alias",)),
        ("seed=!!python/name:os.system x", ("tag",)),
        ("model={name: a, name: b}", ("twice",)),
        ("attack.task=a: b: c", ("Quote it",)),
        ("attack.task=\ud800", ("Quote it",)),
        ("\ud800=1", ("ud800",)),
    ],
)
def test_a_wrong_assignment_says_what_there_is(assignment: str, words: tuple[str, ...]) -> None:
    said = error_of(assignment)
    for word in words:
        assert word in said
    said.encode()  # it can be printed


def test_a_mapping_changes_the_settings_it_names_and_no_others() -> None:
    config = override(PRESETS["your-model"].config, ["model={name: mine, device: cpu}"])
    assert config.model == PRESETS["your-model"].config.model.model_copy(update={"name": "mine", "device": "cpu"})
    config = override(CHECK, ["defences.tvaccine={alignment: {rho: 2}}", "alignment={optimisation: {steps: 7}}"])
    assert config.defences[1].alignment == CHECK.defences[1].alignment.model_copy(update={"rho": 2.0})
    assert config.alignment.optimisation.steps == 7
    assert config.alignment.adapter == CHECK.alignment.adapter


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("attack.optimisation.learning_rate=1e-3", "attack.optimisation.learning_rate", 1e-3),
        ("attack.optimisation.steps=1e3", "attack.optimisation.steps", 1000),
        ("attack.optimisation.steps=4.0", "attack.optimisation.steps", 4),
        ("model.name=no", "model.name", "no"),
        ("model.name='1'", "model.name", "1"),
        ("model.name=C:\\models\\mine", "model.name", "C:\\models\\mine"),
        ("model.name=a=b", "model.name", "a=b"),
        ("model.shard=yes", "model.shard", True),
        (" attack . task = translation ", "attack.task", "translation"),
        ("attack.adapter.target_modules=[q_proj, v_proj]", "attack.adapter.target_modules", ("q_proj", "v_proj")),
    ],
)
def test_a_right_assignment_is_read_as_meant(assignment: str, path: str, expected: Any) -> None:
    found: Any = override(CHECK, [assignment])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["demo", "--set", "attack.task=nope"], ("'nope'", "sentiment")),
        (["align", "--set", "attack.task=sentimant"], ("Did you mean sentiment?",)),
        (["demo", "--set", "attack.num_samples=1000000"], ("num_samples",)),
        (["demo", "--set", "defences.tvaccine.alignment.num_layers=100"], ("num_layers", "8")),
        (["demo", "--defence", "T-Vaccine"], ("Did you mean tvaccine", "sft, vaccine, tvaccine")),
        (["demo", "--methods", "sft,,nope"], ("'nope'", "sft, vaccine, tvaccine")),
        (["demo", "--defence", "sft,sft"], ("two defences are called sft",)),
        (["demo", "--defence", ""], ("defence", "sft, vaccine, tvaccine")),
        (["align", "--defence", " , "], ("defence", "sft, vaccine, tvaccine")),
        (["demo", "--preset", "sandbox-intakt"], ("Did you mean sandbox-intact", "sandbox-manners")),
        (["demo", "--preset", ""], ("preset", "sandbox-intact")),
        (["demo", "--preset", "x" * 100_000], ("preset",)),
        (["demo", "--config", "."], ("regular file",)),
        (["demo", "--config", ""], ("regular file",)),
        (["demo", "--json", "x" * 300], ("written",)),
        (["demo", "--json", ""], ("written",)),
        (["plan", "--memory-gib", "nan"], ("--memory-gib",)),
        (["plan", "--memory-gib", "inf"], ("--memory-gib",)),
        (["plan", "--set", "attack.tusk=1"], ("Did you mean task?",)),
        (["runs", "show", "x" * 100_000], ("No run",)),
        (["worker", "--kinds", "aline"], ("Did you mean align", "baseline")),
        (["worker", "--kinds", ""], ("align",)),
    ],
)
def test_a_wrong_wish_is_found_before_anything_is_queued(
    store: Store, line: list[str], words: tuple[str, ...], capsys: Any
) -> None:
    assert main(line) in (1, 2)
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert len(said) < 1500
    assert len(said.strip().splitlines()) >= 2
    assert store.runs() == []


@pytest.mark.parametrize(
    "line",
    [
        ["demo", "--seeds", "0"],
        ["demo", "--seeds", "-1"],
        ["demo", "--seeds", "1001"],
        ["demo", "--seeds", "1.5"],
        ["demo", "--seeds", "9" * 5001],
        ["demo", "--workers", "0"],
        ["demo", "--workers", "65"],
        ["demo", "--workers", "9" * 5001],
        ["demo", "--workers", "nan"],
        ["plan", "--batch", "9" * 5001],
    ],
)
def test_an_extreme_number_is_refused_in_few_words(store: Store, line: list[str], capsys: Any) -> None:
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "Error" in said
    assert len(said) < 1000
    assert store.runs() == []


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 2001, "half \udcff a character"])
def test_a_prompt_is_text_of_some_length(store: Store, prompt: str, capsys: Any) -> None:
    store.create_run(LabConfig())
    assert main(["generate", prompt]) == 1
    said = capsys.readouterr().err
    assert "prompt" in said.lower()
    assert len(said) < 500
    assert store.runs()
    assert not store.all_jobs()


def test_a_name_that_is_no_text_is_refused(store: Store, capsys: Any) -> None:
    assert main(["align", "--name", "half \udcff", "--preset", "sandbox-check"]) == 1
    assert "name" in capsys.readouterr().err
    assert store.runs() == []


def test_a_result_s_file_is_tried_and_left_as_it_was(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("before")
    assert main(["demo", "--json", str(path), "--set", "seed=x"]) == 2
    assert path.read_text() == "before"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["home", "result.json"]


def test_wishes_from_a_file_are_named_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("attack:\n  sead: 1\n")
    with pytest.raises(ConfigError, match=r"attack\.sead.*no such setting"):
        build_config(None, path, None)
    path.write_text("attack:\n  seed: 1\n  seed: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*line 3"):
        build_config(None, path, None)


@pytest.mark.parametrize(
    "words",
    [
        ["x" * 5000],
        ["runs", "x" * 5000],
        ["runs", "list", "--" + "x" * 5000],
        ["runs", "list", "x" * 5000],
        ["runs", "list", *["x" * 70] * 100],
        ["runs", "x y " * 5000],
    ],
)
def test_a_very_long_wrong_word_is_not_repeated_whole(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "xxx" in said or "x y x y" in said
    assert len(said) < 800
    assert "--help" in said


def test_a_short_wrong_word_is_repeated_and_help_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demoo"]) == 2
    assert "No such command 'demoo'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main([]) == 2, "no command is given"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0x2"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "-2"),
        ("RANK", "first"),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("LOCAL_RANK", "x" * 5000),
    ],
)
def test_a_launcher_s_variable_that_is_no_number_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for other, number in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(other, number)
    monkeypatch.setenv(name, value)
    assert main(["version"]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert value[:20] in said
    assert "torchrun" in said
    assert "unset RANK and WORLD_SIZE" in said
    assert len(said) < 800
