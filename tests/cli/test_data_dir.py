"""Which store a command uses: `--data-dir` counts wherever it stands, and only one folder can be meant."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from tvaccine_core.__main__ import app, main
from tvaccine_core.cli import stages, tools
from tvaccine_core.config import PRESETS
from tvaccine_core.store import Store

CHECK = PRESETS["sandbox-check"].config


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that is used if none is named, with one run."""
    monkeypatch.setenv("TVACCINE_HOME", str(tmp_path / "default"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "default")
    store.create_run(CHECK, "of the default store")
    return store


@pytest.fixture
def other(tmp_path: Path, default: Store) -> Store:
    """Another store, with one run."""
    store = Store(tmp_path / "other")
    store.create_run(CHECK, "of the other store")
    return store


def placed(words: tuple[str, ...], folder: Path) -> Iterator[list[str]]:
    """The command line with `--data-dir` before, between and after its words."""
    for place in range(len(words) + 1):
        yield [*words[:place], "--data-dir", str(folder), *words[place:]]


@pytest.mark.parametrize("words", [("runs",), ("runs", "list"), ("runs", "show")])
def test_reading_uses_the_named_store(default: Store, other: Store, words: tuple[str, ...], capsys: Any) -> None:
    for line in placed(words, other.home):
        assert main(line) == 0, line
        said = capsys.readouterr().out
        assert "of the other store" in said, line
        assert "of the default store" not in said, line


def test_deleting_uses_the_named_store(default: Store, other: Store) -> None:
    for place in range(3):
        run_id = other.create_run(CHECK)
        words = ["runs", "delete"]
        assert main([*words[:place], "--data-dir", str(other.home), *words[place:], run_id, "--yes"]) == 0
        assert run_id not in [run.id for run in other.runs()]
    assert len(default.runs()) == len(other.runs()) == 1


def test_exporting_and_resuming_use_the_named_store(default: Store, other: Store, tmp_path: Path, capsys: Any) -> None:
    (run,) = other.runs()
    for number, line in enumerate(placed(("runs", "export"), other.home)):
        assert main([*line, "--folder", str(tmp_path / str(number))]) == 0
        assert (tmp_path / str(number) / "config.yaml").read_text() == CHECK.to_yaml()
    capsys.readouterr()
    for line in placed(("runs", "resume"), other.home):
        assert main(line) == 1
        assert run.id in capsys.readouterr().err


def test_making_runs_uses_the_named_store(
    default: Store, other: Store, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    used: list[Path] = []

    def nothing(store: Store, *_: object, **__: object) -> list[Any]:
        used.append(store.home)
        raise typer.Exit(0)

    monkeypatch.setattr(stages, "follow", nothing)
    lines = [*placed(("demo",), other.home), *placed(("align",), other.home)]
    for seed, line in enumerate(lines):
        assert main([*line, "--preset", "sandbox-check", "--set", f"seed={seed}"]) == 0
    assert main(["--data-dir", str(other.home), "evaluate", "--state", "base"]) == 0
    assert main(["--data-dir", str(other.home), "generate", "Hello?"]) == 0
    assert used == [other.home] * 6
    assert len(other.runs()) == 5
    assert len(default.runs()) == 1
    assert main(["--data-dir", str(other.home), "attack", "--methods", "sft"]) == 0  # aligned by the newest `align`
    assert len(used) == 7


def test_a_worker_serves_the_named_store(default: Store, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Path] = []
    monkeypatch.setattr(tools, "run_worker", lambda home, *_, **__: served.append(home))
    for line in placed(("worker",), other.home):
        assert main(line) == 0
    assert served == [other.home] * 2


@pytest.mark.parametrize(
    "line",
    [
        ["--data-dir", "one", "runs", "--data-dir", "two", "list"],
        ["--data-dir", "one", "runs", "list", "--data-dir", "two"],
        ["runs", "--data-dir", "one", "list", "--data-dir", "two"],
        ["runs", "list", "--data-dir", "one", "--data-dir", "two"],
        ["--data-dir", "one", "demo", "--data-dir", "two"],
        ["runs", "--data-dir", "one", "delete", "latest", "--yes", "--data-dir", "two"],
    ],
)
def test_two_folders_cannot_both_be_meant(default: Store, tmp_path: Path, line: list[str], capsys: Any) -> None:
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "one" in said
    assert "two" in said
    assert "--data-dir" in said
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "two").exists()


def test_the_same_folder_twice_is_one(default: Store, other: Store, capsys: Any) -> None:
    line = ["--data-dir", "other", "runs", "--data-dir", "./other/", "list", "--data-dir", str(other.home)]
    assert main(line) == 0
    assert "of the other store" in capsys.readouterr().out


@pytest.mark.parametrize("line", [["--data-dir", "", "runs"], ["runs", "list", "--data-dir", ""]])
def test_an_empty_folder_is_no_folder(default: Store, tmp_path: Path, line: list[str], capsys: Any) -> None:
    """`--data-dir "$UNSET"` must not make a store of the current folder."""
    assert main(line) == 2
    assert "--data-dir" in capsys.readouterr().err
    assert not (tmp_path / "lab.db").exists()


def test_an_empty_variable_names_no_folder(
    default: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TVACCINE_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["runs"]) == 0
    assert str(tmp_path / "data" / "tvaccine-lab") in capsys.readouterr().out.replace("\n", "")
    assert not (tmp_path / "lab.db").exists()


@pytest.mark.parametrize("text", ["~no-such-user-here/lab", "file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_is_a_message(
    default: Store, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["runs", "--data-dir", text]) == 1
    assert "--data-dir" in capsys.readouterr().err
    monkeypatch.setenv("TVACCINE_HOME", text)
    assert main(["runs"]) == 1
    assert "TVACCINE_HOME" in capsys.readouterr().err


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group, with the words that name it."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{path} {name}")


def test_every_option_of_a_group_reaches_its_commands() -> None:
    """A group's own option is lost when a command follows, unless it is `--data-dir`, which has one rule."""
    found = dict(commands(get_command(app)))
    assert " runs delete" in found
    for path, command in found.items():
        names = {parameter.name for parameter in command.params} - {"help"}
        if hasattr(command, "commands"):
            assert names <= {"data_dir"}, path
        for parameter in command.params:
            if parameter.name == "data_dir":
                assert parameter.callback is not None, path


@pytest.mark.parametrize("text", ["latest", "", " ", "no-such-run", "latest "])
def test_a_run_is_deleted_by_its_id_only(default: Store, text: str, capsys: Any) -> None:
    """`latest` is another run a moment later, and an unset variable is no choice."""
    assert main(["runs", "delete", text, "--yes"]) == 2
    assert len(default.runs()) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) >= 2


def test_a_run_may_be_deleted_by_the_beginning_of_its_id(default: Store) -> None:
    (run,) = default.runs()
    assert main(["runs", "delete", run.id[:-2], "--yes"]) == 0
    assert default.runs() == []


def test_an_empty_text_names_no_run(default: Store, capsys: Any) -> None:
    for line in (["runs", "show", ""], ["attack", "--run", ""], ["align", "--run", ""], ["runs", "export", ""]):
        assert main(line) == 2
        assert "empty" in capsys.readouterr().err


def test_a_folder_whose_name_is_no_text_is_shown_escaped(tmp_path: Path, capfd: Any) -> None:
    """Bytes of a file name that are not UTF-8 reach Python as lone surrogates, which cannot be printed."""
    folder = tmp_path / "half \udcff"
    Store(folder).create_run(CHECK, "of the odd store")
    assert main(["runs", "--data-dir", str(folder)]) == 0
    said = capfd.readouterr().out.replace("\n", "")
    assert "of the odd store" in said
    assert "\\udcff" in said
