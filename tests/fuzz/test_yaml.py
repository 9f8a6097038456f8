"""Any text is a config or the lab's own error, soon; any config that is written reads back."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from values import ANY_TEXT, DEFAULT, KEYS, MARKS, PLACES, TRAPS, VALUES, check_error

from tvaccine_core.config import LabConfig, parse_config
from tvaccine_core.errors import ConfigError
from tvaccine_core.safe_yaml import read_yaml, write_yaml

LIMIT_S = 3.0
"""Of this process, for one text."""


def read(text: str) -> LabConfig | None:
    """The config of `text`; None if it is refused as it should be."""
    began = time.process_time()
    try:
        config = LabConfig.from_yaml(text)
    except ConfigError as error:
        check_error(error)
        config = None
    assert time.process_time() - began < LIMIT_S
    if config is not None:
        assert LabConfig.from_yaml(config.to_yaml()) == config
    return config


def planted(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The default config with another value at one place."""
    data = copy.deepcopy(DEFAULT)
    inside: Any = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return data


@given(st.one_of(ANY_TEXT, MARKS, TRAPS))
def test_any_text(text: str) -> None:
    read(text)


@given(KEYS, st.one_of(MARKS, TRAPS, ANY_TEXT), st.integers(0, 3))
def test_any_text_as_a_value(key: str, text: str, depth: int) -> None:
    read("".join(f"{'  ' * level}attack:\n" for level in range(depth)) + f"{'  ' * depth}{key}: {text}")


@given(PLACES, st.one_of(MARKS, TRAPS))
def test_any_text_in_the_place_of_a_setting(place: tuple[Any, ...], text: str) -> None:
    read(yaml.safe_dump(planted(place, "PLACE"), sort_keys=False).replace("PLACE", text))


@given(PLACES, VALUES)
def test_any_value_in_the_place_of_a_setting(place: tuple[Any, ...], value: Any) -> None:
    data = planted(place, value)
    try:
        parse_config(LabConfig, data)
    except ConfigError as error:
        check_error(error)
    read(json.dumps(data))


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_any_mapping(data: dict[str, Any], flow: bool) -> None:
    read(yaml.safe_dump(data, default_flow_style=flow))


@given(st.integers(0, 2000), st.sampled_from(["delete", "repeat", "swap"]), st.integers(1, 40))
def test_a_config_that_was_damaged(at: int, how: str, many: int) -> None:
    text = LabConfig().to_yaml()
    at %= len(text)
    piece = text[at : at + many]
    read(text[:at] + {"delete": "", "repeat": piece * 2, "swap": piece[::-1]}[how] + text[at + many :])


REPEATED = ("[", "{", "- ", "? ", "a: ", "{a: ", "*a ", "&a ", "!a ", "'", '"', "#", "\n", " ", "a\n", "0,", "%A b\n")


@given(st.sampled_from(REPEATED))
def test_one_thing_many_times(thing: str) -> None:
    """The time of a large text is bounded whatever is repeated in it."""
    read(thing * (200_000 // len(thing)))


@given(st.binary(max_size=200))
def test_any_file(tmp_path_factory: Any, content: bytes) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    try:
        LabConfig.load(path)
    except ConfigError as error:
        check_error(error)


@given(st.one_of(st.text(max_size=60), TRAPS), st.floats(allow_nan=False), st.integers(-(2**60), 2**60), st.booleans())
def test_what_is_written_reads_back(text: str, ratio: float, count: int, switch: bool) -> None:
    data = {"a": text, "b": [ratio, count, switch, None], text: {"c": text}}
    written = write_yaml(data)
    assert read_yaml(written, "It", remedy="None.") == data
    assert yaml.safe_load(written) == data
