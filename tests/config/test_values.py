"""Which values a setting takes, however they come: YAML, JSON, a page's controls, the command line."""

import json
import math
from typing import Any

import pytest
from pydantic import Field

from tvaccine_core.config import PRESETS, Config, LabConfig, parse_config
from tvaccine_core.errors import ConfigError


class Settings(Config):
    """One field of each kind."""

    count: int = Field(default=3, ge=0)
    ratio: float = 0.5
    counts: tuple[int, ...] = (1,)
    ratios: tuple[float, ...] = (0.5,)
    maybe: int | None = None
    either: int | bool = 0
    switch: bool = False


FIELDS = ("count", "ratio", "counts", "ratios", "maybe")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "value", [True, False, math.nan, math.inf, -math.inf, "nan", "inf", "text", "", 10**400, "9" * 400]
)
def test_a_number_is_a_finite_number(field: str, value: Any) -> None:
    given = [value] if field.endswith("s") else value
    with pytest.raises(ConfigError, match=field) as raised:
        parse_config(Settings, {field: given})
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("field", ["count", "counts", "maybe"])
def test_a_whole_number_is_one_that_json_keeps(field: str) -> None:
    for value, allowed in ((2**53, True), (2**53 + 1, False)):
        given = [value] if field.endswith("s") else value
        if allowed:
            parse_config(Settings, {field: given})
        else:
            with pytest.raises(ConfigError, match=field):
                parse_config(Settings, {field: given})


@pytest.mark.parametrize("value", [4, 4.0, "4", "4.0"])
def test_what_controls_and_command_lines_give_for_4_is_4(value: Any) -> None:
    for field in FIELDS:
        found = getattr(parse_config(Settings, {field: [value] if field.endswith("s") else value}), field)
        assert found == ((4,) if field.endswith("s") else 4)


def test_switches_stay_switches() -> None:
    assert parse_config(Settings, {"switch": True, "either": True}) == Settings(switch=True, either=True)
    assert parse_config(Settings, {"either": True}).either is True
    with pytest.raises(ConfigError, match="switch"):
        parse_config(Settings, {"switch": 2})


@pytest.mark.parametrize("field", ["seed", "attack.harmful_ratio", "attack.optimisation.steps", "attack.adapter.alpha"])
@pytest.mark.parametrize("value", [True, math.nan, math.inf, 1e308, "x", None, [], {}])
def test_the_lab_s_own_numbers_too(field: str, value: Any) -> None:
    data = LabConfig().model_dump(mode="json")
    *parents, last = field.split(".")
    place = data
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError, match=field):
        parse_config(LabConfig, data)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_pass_through_every_form(preset: str) -> None:
    config = PRESETS[preset].config
    assert LabConfig.from_yaml(config.to_yaml()) == config
    assert LabConfig.model_validate_json(config.model_dump_json()) == config
    assert parse_config(LabConfig, json.loads(config.model_dump_json())) == config


def test_wrong_kinds_are_told_in_plain_words() -> None:
    with pytest.raises(ConfigError, match="model: Input should be a mapping of settings") as raised:
        parse_config(LabConfig, {"model": "sandbox", "sead": 1})
    assert "sead: There is no such setting" in str(raised.value)
    assert "ModelConfig" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"alignmnt": {}}, "alignmnt: There is no such setting. Did you mean alignment?"),
        ({"attack": {"optimisation": {"step": 3}}}, "attack.optimisation.step: .* Did you mean steps"),
        ({"defences": [{"alignment": {"name": "tvaccine", "roh": 3}}]}, r"roh: .* Did you mean rho\?"),
        ({"defences": [{"algnment": {"name": "sft"}}]}, r"algnment: .* Did you mean alignment\?"),
        ({"evaluation": {"xyzzy": 1}}, "xyzzy: .* There are: batch_size, max_new_tokens, max_per_set"),
    ],
)
def test_a_misspelt_key_gets_the_nearest_name(data: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(LabConfig, data)


def test_a_message_about_many_or_long_unknown_keys_stays_short() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(LabConfig, {"x" * 10_000: 1, **{f"{number}": 1 for number in range(100)}})
    assert len(str(raised.value)) < 3000
