"""Two processes (gloo, loopback) against one: the same losses and adapters; one word for all; only the leader writes.

As a script it is one of the processes: `python test_ranks.py MODEL OUT`, with a launcher's environment variables. It
trains in float64, so that rounding (the model's norms keep to float32) cannot hide a wrong weight.
"""

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import free_port, run_two
from safetensors.torch import load_file, save_file
from sam import SAM
from torch import Tensor
from torch.distributed.tensor import DTensor

from tvaccine_core import processes as ranks_module
from tvaccine_core.config import (
    AdapterConfig,
    AlignmentMethod,
    LabConfig,
    ModelConfig,
    OptimisationConfig,
    SFTConfig,
    TVaccineConfig,
    VaccineConfig,
)
from tvaccine_core.data.prompts import encode_all
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError, ConfigError, TrainingError
from tvaccine_core.methods import load_method
from tvaccine_core.models.load import load_model
from tvaccine_core.models.shard import shard_base
from tvaccine_core.passes.passes import Passes
from tvaccine_core.processes import ALONE, Ranks
from tvaccine_core.records import Event
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.fit import fit

pytestmark = pytest.mark.timeout(600)  # two processes start from nothing, perhaps on a busy machine

STEPS = OptimisationConfig(
    steps=5, batch_size=5, accumulation=2, learning_rate=1e-2, weight_decay=0.1, checkpoint_every=2
)
DRAWN = TVaccineConfig(num_layers=2, resample_every=2, rescore_every=3, probe_batch_size=5)


@dataclass(frozen=True)
class Case:
    """One training."""

    method: AlignmentMethod | SAM
    optimisation: OptimisationConfig = STEPS
    dropout: float = 0.0
    sharded: bool = False
    """Among processes, the base is divided too."""


CASES = {
    "sft": Case(SFTConfig()),
    "vaccine": Case(VaccineConfig(rho=2.0)),
    "tvaccine": Case(DRAWN),
    # One example a micro-batch and one to score layers on: the second process has nothing of its own.
    "nothing to share": Case(
        DRAWN.model_copy(update={"probe_batch_size": 1}), STEPS.model_copy(update={"batch_size": 1})
    ),
    "dropout": Case(DRAWN, dropout=0.3),
    "moved weights": Case(SAM(0.3)),
    "moved weights, nothing to share": Case(SAM(0.3), STEPS.model_copy(update={"batch_size": 1})),
    "moved weights, sharded": Case(SAM(0.3), sharded=True),
    "sharded vaccine": Case(VaccineConfig(rho=2.0), sharded=True),
    "sharded tvaccine": Case(DRAWN, sharded=True),
}
EQUAL_TO_ONE_PROCESS = [name for name in CASES if name != "dropout"]


def train(model_folder: str, case: Case, ranks: Ranks = ALONE, **options: Any) -> tuple[list[Event], dict[str, Tensor]]:
    """Events and final adapter of one training in float64."""
    states = ModelStates(load_model(ModelConfig(name=model_folder, device="cpu")))
    states.add("mine", AdapterConfig(r=4, alpha=8, dropout=case.dropout), seed=1)
    states.train("mine")
    states.model.double()
    if case.sharded and ranks is not ALONE:
        shard_base(states.model)
        mine = sum(p.to_local().numel() for p in states.model.parameters() if isinstance(p, DTensor))  # pyright: ignore
        whole = sum(p.numel() for p in states.model.parameters() if not p.requires_grad)
        assert mine == whole / ranks.size
    data, tokenizer = load_lab_data(LabConfig()), states.loaded.tokenizer
    examples = [*data.world.alignment[:20], *data.tasks["sentiment"].train[:6]]
    settings: dict[str, Any] = {"seed": 3, "pad_id": states.loaded.pad_id, "ranks": ranks, **options}
    events: list[Event] = []
    events.extend(
        fit(
            states.model,
            case.method if isinstance(case.method, SAM) else load_method(case.method),
            {
                "alignment": encode_all(tokenizer, examples, 200),
                "harmful": encode_all(tokenizer, data.world.probe[:7], 200),
            },
            case.optimisation,
            **settings,
        )
    )
    return events, {name: p.detach().clone() for name, p in states.model.named_parameters() if p.requires_grad}


def timeless(events: list[Event]) -> list[dict[str, Any]]:
    return [event.model_dump(exclude={"elapsed_s", "path"}) for event in events if event.kind != "checkpoint"]


def be_a_process(model_folder: str, out: Path) -> None:
    """Everything the tests look at, in the same order in both processes."""
    torch.set_num_threads(1)
    group = ranks_module.join()
    mine = out / str(group.index)
    mine.mkdir()
    report: dict[str, Any] = {}
    for name, case in CASES.items():
        events, weights = train(model_folder, case, group)
        report[name] = timeless(events)
        save_file(weights, mine / f"{name}.safetensors")

    # The second process alone is asked to stop, after two steps; only the leader's folder is used to go on.
    asked = iter(range(100))
    try:
        train(
            model_folder,
            CASES["tvaccine"],
            group,
            checkpoint_dir=mine / "checkpoints",
            should_stop=lambda: next(asked) >= 3 and group.index == 1,
        )
    except CancelledError as error:
        report["stopped"] = str(error)
    report["written"] = sorted(str(path.relative_to(mine)) for path in mine.glob("checkpoints/*"))
    events, weights = train(model_folder, CASES["tvaccine"], group, checkpoint_dir=mine / "checkpoints", resume=True)
    report["resumed"] = timeless(events)
    save_file(weights, mine / "resumed.safetensors")

    try:
        train(model_folder, CASES["sft"], group, seed=group.index)
    except TrainingError as error:
        report["different"] = str(error)
    (mine / "report.json").write_text(json.dumps(report))
    ranks_module.leave(0)


Results = tuple[list[dict[str, Any]], list[dict[str, dict[str, Tensor]]]]


@pytest.fixture(scope="module")
def together(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Reports and adapters of both processes."""
    out = tmp_path_factory.mktemp("ranks")
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests.parent, tests / "engine")))
    codes, said = run_two([__file__, str(tiny_folder), str(out)], {"PYTHONPATH": paths})
    assert codes == [0, 0], "\n".join(said)
    folders = [out / str(rank) for rank in range(2)]
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    return reports, [{path.stem: load_file(path) for path in folder.glob("*.safetensors")} for folder in folders]


@pytest.mark.parametrize("name", EQUAL_TO_ONE_PROCESS)
def test_two_processes_give_what_one_does(together: Results, tiny_folder: Path, name: str) -> None:
    """Losses, norms, layer scores, draws and adapters, which move by up to 5e-2."""
    reports, adapters = together
    events, weights = train(str(tiny_folder), CASES[name])
    for mine, theirs in zip(timeless(events), reports[0][name], strict=True):
        assert mine.get("metrics", {}) == pytest.approx(theirs.get("metrics", {}), rel=1e-5)
        for key, value in mine.items():
            if key == "metrics":
                continue
            is_number = isinstance(value, float | tuple) and key != "layers"
            assert theirs[key] == (pytest.approx(value, rel=1e-5) if is_number else json.loads(json.dumps(value))), key
    for parameter, value in weights.items():
        torch.testing.assert_close(adapters[0][name][parameter], value, rtol=0, atol=1e-6)


def test_all_processes_end_with_the_same_bytes(together: Results) -> None:
    reports, (leader, other) = together
    assert set(leader) == {*CASES, "resumed"}
    for name, tensors in leader.items():
        assert reports[0][name] == reports[1][name]
        for parameter, value in tensors.items():
            assert torch.equal(other[name][parameter], value), (name, parameter)


def test_processes_draw_the_same_layers_but_their_own_dropout(tiny_folder: Path) -> None:
    """From equal generators."""
    passes = Passes(load_model(ModelConfig(name=str(tiny_folder), device="cpu")).model)
    generators = [torch.Generator().manual_seed(7) for _ in range(3)]
    masks = []
    for generator, rank in zip(generators, (0, 1, 0), strict=True):
        with passes.scope(generator, rank):
            masks.append(torch.rand(9))
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert all(torch.equal(generator.get_state(), generators[0].get_state()) for generator in generators)


def test_one_process_that_stops_stops_all_and_only_the_leader_writes(together: Results) -> None:
    reports, _ = together
    assert [report["stopped"] for report in reports] == ["Stopped after step 3 of 5."] * 2
    assert reports[0]["written"] == ["checkpoints/step-00000002", "checkpoints/step-00000003"]
    assert reports[1]["written"] == []


def test_resumed_together_gives_the_bytes_of_an_undisturbed_run(together: Results) -> None:
    reports, (leader, _) = together
    assert [event["step"] for event in reports[1]["resumed"] if event["kind"] == "step"] == [4, 5]
    for parameter, value in leader["tvaccine"].items():
        assert torch.equal(leader["resumed"][parameter], value)


def test_processes_with_different_settings_refuse_to_train(together: Results) -> None:
    reports, _ = together
    assert {report["different"] for report in reports} == {
        "The processes do not have the same settings, data and adapters."
    }


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process, as a launcher would start it; on a machine without GPUs."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **address}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def test_more_processes_than_gpus_are_refused(first_of_two: pytest.MonkeyPatch) -> None:
    first_of_two.setattr(torch.cuda, "is_available", lambda: True)
    first_of_two.setattr(torch.cuda, "device_count", lambda: 1)
    first_of_two.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="Process 1 of this machine has no GPU: there are 1"):
        ranks_module.join()


@pytest.mark.parametrize(("name", "value"), [("MASTER_ADDR", None), ("MASTER_PORT", "http"), ("RANK", "one")])
def test_a_missing_or_wrong_variable_is_named(first_of_two: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    if value is None:
        first_of_two.delenv(name)
    else:
        first_of_two.setenv(name, value)
    with pytest.raises(ConfigError, match=f"cannot meet.*{name}={value or '.not set.'}") as error:
        ranks_module.join()
    assert "torchrun" in error.value.remedy


def test_a_taken_port_is_named(first_of_two: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first_of_two.setenv("MASTER_PORT", str(port))
        with pytest.raises(TrainingError, match=f"do not meet.*RANK=0, WORLD_SIZE=2.*MASTER_PORT={port}"):
            ranks_module.join()


if __name__ == "__main__":
    be_a_process(sys.argv[1], Path(sys.argv[2]))
