"""Which models a study trains, with which settings. (What it makes of the results: test_study_report.)"""

from pathlib import Path

import pytest

from tvaccine_core.bench import study
from tvaccine_core.config import PRESETS, Defence, LabConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError

QUICK = PRESETS["sandbox-manners"].config


def with_tvaccine(**settings: object) -> LabConfig:
    method = TVaccineConfig.model_validate({"name": "tvaccine", **settings})
    return QUICK.model_copy(update={"defences": (Defence(alignment=method),)})


def write_result(folder: Path, config: LabConfig) -> Path:
    path = folder / "tvaccine-seed3.json"
    result = study.AlignedResult(
        method="tvaccine",
        seed=3,
        config=study.study_config(config, "tvaccine", 3),
        before={},
        final_alignment_loss=0.1,
        alignment_seconds=1.0,
        attacks=tuple(
            study.AttackResult(name=name, config=attack, curve=(), seconds=1.0)
            for name, attack in study.attack_configs(config.attack, study.StudySettings.model_validate({}))
        ),
    )
    path.write_text(result.model_dump_json())
    return path


def test_a_method_has_the_settings_of_the_config_given_and_otherwise_its_own() -> None:
    config = with_tvaccine(rho=0.3, freezing="layer", perturb_every=4)
    tvaccine = study.study_config(config, "tvaccine", 2).defences[0].alignment
    assert (tvaccine.rho, tvaccine.freezing) == (0.3, "layer")  # pyright: ignore[reportAttributeAccessIssue]
    vaccine = study.study_config(config, "vaccine", 2).defences[0].alignment
    assert vaccine == VaccineConfig(perturb_every=4)
    assert study.study_config(config, "vaccine", 2).seed == 2
    with pytest.raises(ConfigError, match="no method 'tar'"):
        study.study_config(config, "tar", 2)


def test_results_of_another_config_are_never_averaged_with_these(tmp_path: Path) -> None:
    settings = study.StudySettings.model_validate({"methods": ["tvaccine"], "alignment_seeds": [3]})
    path = write_result(tmp_path, QUICK)
    assert study.run_study(tmp_path, settings, QUICK, 1)[0].seed == 3  # nothing is missing: nothing is run
    with pytest.raises(ConfigError, match=path.name):
        study.run_study(tmp_path, settings, with_tvaccine(rho=0.3), 1)
    other = settings.model_copy(update={"strong_learning_rate_factor": 3.0})
    with pytest.raises(ConfigError, match=path.name):
        study.run_study(tmp_path, other, QUICK, 1)
