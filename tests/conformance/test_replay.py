"""The methods reproduce numbers recorded from their authors' own code; a replay that cannot do so says why."""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tvaccine_core.bench.conformance import TOLERANCE, replay
from tvaccine_core.errors import ConfigError, DataError

TRACES = Path(__file__).parent


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A copy of the small T-Vaccine trace that a test may spoil."""
    return Path(shutil.copytree(TRACES / "tvaccine-6", tmp_path / "trace"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "trace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["tvaccine-6", "tvaccine-28", "vaccine-6"])
def test_the_authors_numbers_are_reproduced(name: str) -> None:
    report = replay(TRACES / name)
    assert report.method == name.split("-")[0]
    assert report.passed, report.rows
    quantities = {quantity for quantity, _ in report.rows}
    assert {"losses", "perturbation norms", "gradient norms", "parameters after the last step"} <= quantities
    assert ("layer scores" in quantities) == (report.method == "tvaccine")
    assert max(error for _, error in report.rows) < TOLERANCE / 10


def test_a_wrong_radius_is_seen(trace: Path) -> None:
    given = json.loads((trace / "trace.json").read_text())["hyperparameters"]
    edit(trace, hyperparameters=given | {"rho": given["rho"] * 1.001})
    errors = dict(replay(trace).rows)
    assert errors["perturbation norms"] == pytest.approx(1e-3, rel=0.01)
    assert errors["layer scores"] < TOLERANCE


def test_the_other_freezing_reading_is_seen(trace: Path) -> None:
    given = json.loads((trace / "trace.json").read_text())["hyperparameters"]
    edit(trace, hyperparameters=given | {"adapter_freezing": "layer"})
    report = replay(trace)
    assert dict(report.rows)["which parameters have a gradient"] == math.inf
    assert not report.passed


def test_a_changed_reference_gradient_is_seen(trace: Path) -> None:
    path = trace / "first_step_grads.safetensors"
    gradients = load_file(path)
    name = sorted(gradients)[3]
    gradients[name] = gradients[name] * 1.01
    save_file(gradients, path)
    assert dict(replay(trace).rows)["gradients of step 0"] == pytest.approx(0.01, rel=0.05)


def test_an_unknown_method_is_named(trace: Path) -> None:
    edit(trace, method="booster")
    with pytest.raises(ConfigError, match="'booster'") as caught:
        replay(trace)
    assert "tvaccine" in caught.value.remedy


def test_a_folder_without_a_trace_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable trace"):
        replay(tmp_path)


def test_a_truncated_tensor_file_is_named(trace: Path) -> None:
    path = trace / "final.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="final"):
        replay(trace)


def test_an_incomplete_step_is_a_data_error(trace: Path) -> None:
    steps = json.loads((trace / "trace.json").read_text())["steps"]
    del steps[2]["losses"]
    edit(trace, steps=steps)
    with pytest.raises(DataError, match="losses"):
        replay(trace)


def test_parameters_of_another_model_are_refused(trace: Path) -> None:
    config = json.loads((trace / "trace.json").read_text())["llama_config"]
    edit(trace, llama_config=config | {"num_hidden_layers": 5})
    with pytest.raises(DataError, match="not the model's"):
        replay(trace)
