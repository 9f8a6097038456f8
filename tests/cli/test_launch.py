"""The command line under a launcher, two processes on loopback: equal to one process; failures and stops reach all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import free_port, run_two
from safetensors.numpy import load_file

from tvaccine_core.cli.options import build_config
from tvaccine_core.cli.tools import worker
from tvaccine_core.errors import ConfigError, StoreError
from tvaccine_core.processes import ALONE
from tvaccine_core.records import DriftRecord, EvalRecord, Event, StepRecord
from tvaccine_core.store import Store
from tvaccine_core.workers import multi_process as launch
from tvaccine_core.workers.runner import TorchEngine
from tvaccine_core.workers.supervisor import Supervisor
from tvaccine_core.workers.worker import Worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # two processes start from nothing, perhaps on a busy machine

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "model.device=cpu",
    "evaluation.max_per_set=2",
    "evaluation.max_new_tokens=4",
    "alignment.optimisation.steps=4",
    "alignment.optimisation.batch_size=5",
    "alignment.optimisation.learning_rate=1e-4",
    "alignment.optimisation.checkpoint_every=2",
    "attack.optimisation.steps=3",
    "attack.optimisation.learning_rate=1e-4",
    "attack.eval_every=2",
)
TINY = ("--preset", "sandbox-check", *(part for setting in SETTINGS for part in ("--set", setting)))
ENVIRONMENT = os.environ | {
    **{"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    "CUDA_VISIBLE_DEVICES": "",  # two processes on a machine with one GPU would be refused
}


def run_two_of(fault: str, *arguments: str) -> tuple[list[int], list[str]]:
    """`run_two` of the command line. `fault`: see `launched.py`; empty for none."""
    launched = str(Path(__file__).with_name("launched.py"))
    return run_two([launched, fault, *arguments], ENVIRONMENT, discards_output=True)


def jobs(store: Store) -> dict[str, str]:
    return {job.title: job.state for job in store.all_jobs()}


def work(store: Store) -> None:
    """Do what is queued in this process."""
    mine = Worker(store, TorchEngine(1))
    while mine.run_one():
        pass


def losses(store: Store) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for job in store.all_jobs():
        for stored in store.events(job.run_id, kinds=["step"], job_id=job.id):
            assert isinstance(stored.event, StepRecord)
            found.setdefault(job.title, []).append(stored.event.loss)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """What one process makes of `demo` with two methods, and the run's id."""
    store = Store(tmp_path_factory.mktemp("alone"))
    config = build_config("sandbox-check", None, list(SETTINGS), ["sft,tvaccine"])
    run_id = store.create_run(config)
    attack = config.attack.model_dump(mode="json")
    for method in config.defences:
        store.enqueue(run_id, "align", {"aligned": method.name})
    for method in config.defences:
        store.enqueue(run_id, "attack", {"defence": method.name, "attack": attack, "attack_id": "a1"})
    work(store)
    assert set(jobs(store).values()) == {"done"}
    return store, run_id


def assert_same_as_alone(store: Store, alone: tuple[Store, str]) -> None:
    """Losses, adapters and drifts of the one run in `store`."""
    one, copy = alone
    (run,) = store.runs()
    assert set(jobs(store).values()) == {"done"}
    expected = losses(one)
    assert {title: len(values) for title, values in expected.items()} == {
        **{"align sft": 4, "align tvaccine": 4},
        **{"attack sft a1": 3, "attack tvaccine a1": 3},
    }
    found = losses(store)
    assert "attack sft a1" in found
    for title, values in found.items():
        assert values == pytest.approx(expected[title], abs=1e-5), title
    mine = one.run_dir(copy) / "states"
    paths = list((store.run_dir(run.id) / "states").rglob("*.safetensors"))
    assert len(paths) == len(found)
    for path in paths:
        theirs = load_file(path)
        for name, tensor in load_file(mine / path.relative_to(store.run_dir(run.id) / "states")).items():
            assert abs(theirs[name] - tensor).max() <= 1e-5, (path.parent.name, name)
    drifts = {event.state: event.drift for event in events(one, "drift") if isinstance(event, DriftRecord)}
    for event in events(store, "drift"):
        assert isinstance(event, DriftRecord)
        assert event.drift == pytest.approx(drifts[event.state], rel=1e-2)


def events(store: Store, kind: str) -> list[Event]:
    (run,) = store.runs()
    return [stored.event for stored in store.events(run.id, kinds=[kind])]


def test_accelerate_launch_gives_what_one_process_does(tmp_path: Path, alone: tuple[Store, str]) -> None:
    """`demo`: every method aligned and attacked, the base and all states measured by the leader."""
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    quiet = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()))
    done = subprocess.run(
        [
            *(sys.executable, "-m", *launcher, *quiet, "-m", "tvaccine_core", "demo", *TINY),
            *("--methods", "sft,tvaccine", "--data-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=580,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("s from start to end") == 1  # the followers print nothing
    assert len(losses(Store(tmp_path))) == 4
    assert_same_as_alone(Store(tmp_path), alone)


def test_a_base_divided_among_processes_gives_the_same(tmp_path: Path, alone: tuple[Store, str]) -> None:
    """The leader measures and answers alone, and each of its passes needs the other's half of the weights."""
    codes, said = run_two_of(
        "", "demo", *TINY, "--set", "model.shard=true", "--methods", "sft", "--data-dir", str(tmp_path)
    )
    assert codes == [0, 0], "\n".join(said)
    store = Store(tmp_path)
    assert_same_as_alone(store, alone)
    assert len(events(store, "drift")) == 1
    assert {event.state for event in events(store, "eval") if isinstance(event, EvalRecord)} == {
        *("base", "aligned/sft", "attacked/sft/a1"),
    }


def test_a_base_cannot_be_divided_among_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(build_config("sandbox-check", None, [*SETTINGS, "model.shard=true"]))
    job_id = store.enqueue(run_id, "baseline", {})
    work(store)
    job = store.job(job_id)
    assert (job.state, "this is one alone" in (job.error or "")) == ("failed", True)
    assert "torchrun" in (job.remedy or "")


def test_a_process_that_fails_ends_all_with_its_message_and_nothing_is_lost(tmp_path: Path) -> None:
    codes, said = run_two_of("memory", "align", *TINY, "--methods", "sft", "--data-dir", str(tmp_path))
    assert codes == [1, 1], "\n".join(said)
    store = Store(tmp_path)
    align = next(job for job in store.all_jobs() if job.kind == "align")
    assert jobs(store) == {"align sft": "failed", "baseline": "cancelled"}
    assert (align.error or "").startswith("Process 1 of 2: Step 3: cpu has no memory left")
    assert "batch_size" in (align.remedy or "")
    assert (align.error or "") in " ".join(said[0].split())
    store.resume(align.id)
    work(store)
    assert store.job(align.id).state == "done"
    assert losses(store)["align sft"] != []
    steps = [stored.event.step for stored in store.events(align.run_id, kinds=["step"])]  # pyright: ignore
    assert steps == [1, 2, 3, 4]


def test_a_process_that_is_killed_fails_the_job_with_advice(tmp_path: Path) -> None:
    codes, said = run_two_of("killed", "align", *TINY, "--methods", "sft", "--data-dir", str(tmp_path))
    assert codes == [1, -9], "\n".join(said)
    store = Store(tmp_path)
    align = next(job for job in store.all_jobs() if job.kind == "align")
    assert align.state == "failed"
    assert "connection to another process" in (align.error or "")
    assert "resume" in (align.remedy or "")
    assert [path.name for path in store.run_dir(align.run_id).glob("checkpoints/aligned/sft/*")] == ["step-00000002"]


def test_a_stop_while_the_others_wait_reaches_them_and_a_signal_to_one_ends_all(tmp_path: Path) -> None:
    """The first stop is of one job, and they go on with the next; the second is of a process."""
    codes, said = run_two_of("stopped", "demo", *TINY, "--methods", "sft,tvaccine", "--data-dir", str(tmp_path))
    assert codes == [130, 0], "\n".join(said)
    store = Store(tmp_path)
    assert jobs(store) == {
        **{"align sft": "done", "align tvaccine": "done", "baseline": "cancelled"},
        **{"attack sft a1": "cancelled", "attack tvaccine a1": "interrupted"},
    }
    assert "runs resume" in said[0]
    (run,) = store.runs()
    checkpoints = store.run_dir(run.id).glob("checkpoints/attacked/tvaccine/a1/*")
    assert [path.name for path in checkpoints] == ["step-00000002"]


def test_a_worker_is_not_started_by_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="A worker is one process"):
        worker()


def test_another_programs_workers_must_not_take_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_group", ALONE)
    with Supervisor(tmp_path, 0), pytest.raises(StoreError, match="would take the jobs"):
        launch.lead(Store(tmp_path), [], lambda: None)
