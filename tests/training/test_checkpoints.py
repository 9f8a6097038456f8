"""Kill, resume, and find the same bytes; damage, a full disk, foreign settings."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tvaccine_core.config import AdapterConfig, LabConfig, ModelConfig, OptimisationConfig, SFTConfig, TVaccineConfig
from tvaccine_core.data.prompts import Encoded, encode_all
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError, TrainingError
from tvaccine_core.methods import load_method
from tvaccine_core.methods.alignment.sft import SFT
from tvaccine_core.models.load import load_model
from tvaccine_core.records import CheckpointRecord, MessageRecord, StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.checkpoints import META, TENSORS, discard_checkpoints, last_step, save_checkpoint
from tvaccine_core.training.fit import fit

MakeStates = Callable[..., ModelStates]
CONFIG = OptimisationConfig(steps=16, batch_size=3, accumulation=2, learning_rate=1e-2, checkpoint_every=5)


def train_and_save(model_folder: str, out: str, *, resume: bool) -> list[int]:
    """T-Vaccine with dropout and accumulation, so that every kind of state and randomness counts; steps done."""
    torch.set_num_threads(1)
    states = ModelStates(load_model(ModelConfig(name=model_folder, device="cpu")))
    states.add("aligned/tvaccine", AdapterConfig(r=4, alpha=8, dropout=0.1), seed=1)
    states.train("aligned/tvaccine")
    data = load_lab_data(LabConfig())
    tokenizer = states.loaded.tokenizer
    steps = []
    for event in fit(
        states.model,
        load_method(TVaccineConfig(num_layers=2, resample_every=3, rescore_every=7, probe_batch_size=4)),
        {
            "alignment": encode_all(tokenizer, data.world.alignment[:20], 200),
            "harmful": encode_all(tokenizer, data.world.probe[:7], 200),
        },
        CONFIG,
        seed=3,
        pad_id=states.loaded.pad_id,
        checkpoint_dir=Path(out) / "checkpoints",
        resume=resume,
    ):
        if isinstance(event, StepRecord):
            steps.append(event.step)
            print("step", event.step, flush=True)
    states.save("aligned/tvaccine", ["aligned/tvaccine"], Path(out) / "state")
    return steps


def files(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`; times left out of checkpoints, the one thing that may differ."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == META:
                content = json.dumps(json.loads(content) | {"elapsed_s": 0}).encode()
            found[str(path.relative_to(folder))] = content
    return found


def test_killed_and_resumed_gives_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_and_save(str(tiny_folder), str(whole), resume=False) == list(range(1, 17))
    victim = subprocess.Popen(
        [sys.executable, __file__, str(tiny_folder), str(broken)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert victim.stdout is not None
    for line in victim.stdout:
        if line.split() == ["step", "13"]:
            victim.send_signal(signal.SIGKILL)
            break
    assert victim.wait(timeout=60) == -signal.SIGKILL
    assert last_step(broken / "checkpoints") == 10
    assert not (broken / "state").exists()
    assert train_and_save(str(tiny_folder), str(broken), resume=True) == list(range(11, 17))
    assert files(broken) == files(whole)


@pytest.fixture
def run(make_states: MakeStates, encoded: list[Encoded], tmp_path: Path) -> Callable[..., list]:
    """Train with checkpoints in `tmp_path/c`; gives the events, with the final weights as the last item."""

    def run(config: OptimisationConfig = CONFIG, *, resume: bool = False, **options: object) -> list:
        states = make_states()
        streams = {"alignment": encoded, "harmful": options.pop("probe", ())}
        settings = {"seed": 3, "pad_id": 4, "checkpoint_dir": tmp_path / "c", **options}
        events = list(
            fit(states.model, SFT(SFTConfig()), streams, config, resume=resume, **settings)  # pyright: ignore
        )
        return [*events, {name: p.detach().clone() for name, p in states.model.named_parameters() if p.requires_grad}]

    return run


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_are_reported_and_the_last_two_kept(run: Callable[..., list], tmp_path: Path) -> None:
    events = run()
    assert [event.step for event in events if isinstance(event, CheckpointRecord)] == [5, 10, 15, 16]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000015", "step-00000016"]
    assert last_step(tmp_path / "c") == 16
    discard_checkpoints(tmp_path / "c")
    assert last_step(tmp_path / "c") == 0


def test_a_checkpoint_comes_after_what_its_step_reported(run: Callable[..., list]) -> None:
    """So that a resumed run may repeat records, but never lacks one."""
    order = [(type(event).__name__, event.step) for event in run()[:-1]]
    assert order.index(("StepRecord", 5)) + 1 == order.index(("CheckpointRecord", 5))


def test_stopping_writes_a_checkpoint_to_resume_from(run: Callable[..., list], tmp_path: Path) -> None:
    whole = run(checkpoint_dir=tmp_path / "other")[-1]
    asked = iter(range(100))
    with pytest.raises(CancelledError):
        run(should_stop=lambda: next(asked) == 7)
    assert last_step(tmp_path / "c") == 7
    events = run(resume=True)
    assert [event.step for event in events[:-1] if isinstance(event, StepRecord)] == list(range(8, 17))
    assert same(events[-1], whole)


def test_elapsed_time_goes_on(run: Callable[..., list], tmp_path: Path) -> None:
    asked = iter(range(100))
    with pytest.raises(CancelledError):
        run(should_stop=lambda: next(asked) == 7)
    before = json.loads((tmp_path / "c" / "step-00000007" / META).read_text())["elapsed_s"]
    assert before > 0
    first = next(event for event in run(resume=True) if isinstance(event, StepRecord))
    assert first.elapsed_s > before


def test_resuming_without_a_checkpoint_starts_at_the_beginning(run: Callable[..., list]) -> None:
    assert run(resume=True)[0].step == 1


def test_resuming_a_finished_run_has_nothing_left_to_do(run: Callable[..., list]) -> None:
    final = run()[-1]
    events = run(resume=True)
    assert len(events) == 1
    assert same(events[-1], final)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no meta", "meta", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    run: Callable[..., list], tmp_path: Path, damage: str
) -> None:
    final = run()[-1]
    newest = tmp_path / "c" / "step-00000016"
    tensors = newest / TENSORS
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-9])
    elif damage == "flipped":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "no meta":
        (newest / META).unlink()
    elif damage == "meta":
        (newest / META).write_text('{"version": 1}')
    else:
        tensors.unlink()
    events = run(resume=True)
    assert isinstance(events[0], MessageRecord)
    assert "step-00000016 is damaged" in events[0].text
    assert "step 15" in events[0].remedy
    assert [event.step for event in events if isinstance(event, StepRecord)] == [16]
    assert same(events[-1], final)


def test_when_all_are_damaged_the_error_says_so(run: Callable[..., list], tmp_path: Path) -> None:
    run()
    for path in (tmp_path / "c").glob(f"step-*/{TENSORS}"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"No checkpoint .* can be read") as caught:
        run(resume=True)
    assert "without resuming" in caught.value.remedy


@pytest.mark.parametrize("change", [{"learning_rate": 2e-2}, {"seed": 4}, {"probe": "more"}])
def test_checkpoints_of_other_settings_are_refused(
    run: Callable[..., list], encoded: list[Encoded], change: dict
) -> None:
    run()
    if "learning_rate" in change:
        arguments: dict = {"config": CONFIG.model_copy(update=change)}
    else:
        arguments = {"probe": encoded[:3]} if "probe" in change else change
    with pytest.raises(TrainingError, match="other settings or data"):
        run(resume=True, **arguments)


def test_how_often_checkpoints_are_written_may_change(run: Callable[..., list]) -> None:
    run()
    assert run(CONFIG.model_copy(update={"checkpoint_every": 2}), resume=True)


def test_leftovers_of_a_killed_write_do_no_harm(run: Callable[..., list], tmp_path: Path) -> None:
    partial = tmp_path / "c" / ".partial-step-00000005"
    partial.mkdir(parents=True)
    (partial / TENSORS).write_bytes(b"half")
    assert run(resume=True)[0].step == 1
    assert not partial.exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """A file size limit of the process stands in for the disk: the write fails half way, as it does there."""
    save_checkpoint(tmp_path, step=5, elapsed_s=1.0, fingerprint="f", tensors={"x": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match="cannot be written") as caught:
            save_checkpoint(tmp_path, step=10, elapsed_s=2.0, fingerprint="f", tensors={"x": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "disk space" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


if __name__ == "__main__":
    train_and_save(sys.argv[1], sys.argv[2], resume=False)
