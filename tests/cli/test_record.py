"""The recordings that ship are of the present presets, small, and readable; the command records what is finished."""

from pathlib import Path

import pytest

from tvaccine_core.__main__ import main
from tvaccine_core.cli import record as command
from tvaccine_core.cli.record import DEFENCES, config_of, name_of
from tvaccine_core.config import PRESETS
from tvaccine_core.store import Store
from tvaccine_core.store.recorded import RECORDINGS, SUFFIX, take

MAX_BYTES = 3_000_000
SHIPPED = sorted(RECORDINGS.glob(f"*{SUFFIX}"))


def test_the_first_preset_has_a_recording() -> None:
    assert (RECORDINGS / f"{next(iter(PRESETS))}{SUFFIX}").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_recording_is_of_the_present_preset(tmp_path: Path, path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES
    store = Store(tmp_path)
    run_id = take(store, path)
    preset = path.name.removesuffix(SUFFIX)
    run = store.run(run_id)
    assert run.name == name_of(preset)
    assert run.config == config_of(preset), "record it again: python -m tvaccine_core record"
    attacked = {job.params["defence"] for job in store.jobs(run_id) if job.kind == "attack"}
    assert attacked == {defence.name for defence in run.config.defences}
    measured = {stored.event.state for stored in store.events(run_id, kinds=("eval",)) if stored.event.kind == "eval"}
    assert {"base", *(f"attacked/{name}/a1" for name in attacked)} <= measured
    assert store.answers(run_id, state="base")


def test_a_recording_is_made_once_and_again_only_if_its_run_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DEFENCES, "sandbox-check", ("sft",))
    words = ["record", "sandbox-check", "--output", str(tmp_path / "out"), "--data-dir", str(tmp_path / "home")]
    assert main(words) == 0, capsys.readouterr()
    made = tmp_path / "out" / f"sandbox-check{SUFFIX}"
    first = made.read_bytes()
    runs = Store(tmp_path / "home").runs()
    assert main(words) == 0
    assert (made.read_bytes(), Store(tmp_path / "home").runs()) == (first, runs)
    store = Store(tmp_path / "other")
    assert store.run(take(store, made)).config == config_of("sandbox-check")


def test_an_unknown_preset_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["record", "sandbox-intakt", "--data-dir", str(tmp_path)]) == 2
    assert "sandbox-intact" in "".join(capsys.readouterr())
    assert command.DEFENCES
