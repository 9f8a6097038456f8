"""YAML that a clumsy or a hostile hand wrote: read as meant, or refused in bounded time by a `ConfigError`."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tvaccine_core.config import LabConfig, ModelConfig
from tvaccine_core.errors import ConfigError

QUICK_S = 3.0
"""More than any text within the limits takes on a slow machine, and far less than what was seen without limits."""


def refused(text: str, *words: str) -> ConfigError:
    """The error for `text`, which must come soon, be short, and hold `words`."""
    began = time.process_time()
    with pytest.raises(ConfigError) as raised:
        LabConfig.from_yaml(text)
    assert time.process_time() - began < QUICK_S
    message = str(raised.value)
    assert len(message) < 1500, message
    assert raised.value.remedy
    for word in words:
        assert word in message
    return raised.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 2020-13-45", ("seed", "2020-13-45")),
        ("seed: 2020-01-01", ("seed", "2020-01-01")),
        (f"model: {{}}\nseed: {'1' * 5001}", ("line 2", "5,001 digits")),
        (f"seed: {'[' * 3000}", ("line 1", "deep")),
        (f"seed:\n  {'- ' * 3000}", ("line 2", "deep")),
        (f"seed: {'{a: ' * 3000}", ("line 1", "deep")),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", ("line 1", "anchor")),
        ("a: *b", ("line 1", "alias")),
        ("seed: 1\nseed: 2", ("line 2", "seed", "twice")),
        ("attack:\n  seed: 1\n  task: sentiment\n  seed: 2", ("line 4", "seed", "twice")),
        ("model: {name: a, name: b}", ("line 1", "name", "twice")),
        ("seed: !!python/object/apply:os.system [true]", ("line 1", "tag")),
        ("seed: !custom 3", ("line 1", "tag")),
        ("1: 2", ("line 1", "1", "text")),
        ("[a]: 2", ("line 1", "text")),
        ("? {a: b}\n: 2", ("line 1", "text")),
        ("<<: {seed: 1}", ("<<",)),
        ("seed: 1\n---\nseed: 2", ("line 2", "one document")),
        ("seed: [", ("line 1",)),
        ("seed: 1\n\ttask: x", ("line 2",)),
        ("seed: 1\nmodel: {name: \x07}", ("line 2", "#x0007")),
        ("seed: \ud800", ("line 1",)),
        ("", ("mapping",)),
        ("just text", ("mapping",)),
        ("[1, 2]", ("mapping",)),
    ],
)
def test_what_cannot_be_meant_is_refused_by_line(text: str, words: tuple[str, ...]) -> None:
    refused(text, *words)


def test_many_items_are_refused_before_they_are_read() -> None:
    refused(f"seed: [{'0,' * 20_000}]", "line 1", "10,000")
    refused("\n".join(f"k{number}: 1" for number in range(20_000)), "10,000")


def test_a_large_text_is_refused_unread_and_never_echoed() -> None:
    refused("seed: [" + "0," * 1_500_000 + "]", "1,048,576")
    refused(f"model: {{name: {'x' * 20_000_000}}}", "1,048,576")
    refused(f"seed: {'x' * 1_000_000}", "seed", "xxx")
    refused(f"{'x' * 1_000_000}: 1")
    refused(f"alignment: {{methods: [{{name: {'x' * 900_000}}}]}}", "defences")
    refused("\n".join(f"{'k' * 50}{number}: 1" for number in range(4000)), "more")


def test_a_nested_value_is_echoed_shortly() -> None:
    refused(f"seed: [{', '.join(['[[[deep]]]'] * 500)}]", "seed")
    refused(f"model: {{name: {{{', '.join(f'k{n}: {n}' for n in range(1000))}}}}}", "model.name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("+1.5e-3", 1.5e-3),
        ("1e+0", 1.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1", 1.0),
        ("1.", 1.0),
    ],
)
def test_numbers_read_as_people_write_them(text: str, expected: float) -> None:
    config = LabConfig.from_yaml(f"attack: {{optimisation: {{learning_rate: {text}}}}}")
    assert config.attack.optimisation.learning_rate == expected


@pytest.mark.parametrize(("text", "expected"), [("017", 17), ("-0", 0), ("1_000", 1000), ("4.0", 4), ("'4'", 4)])
def test_whole_numbers_are_decimal(text: str, expected: int) -> None:
    assert LabConfig.from_yaml(f"seed: {text}").seed == expected


@pytest.mark.parametrize("text", ["0:90", "1:30", "0o7", "1.5", "text", "null", "~", ""])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    refused(f"seed: {text}", "seed")


@pytest.mark.parametrize(
    "name", ["no", "on", "off", "y", "2020-01-01", "1:30", "0x10", "1_000", "<<", "=", "a: b", "-"]
)
def test_a_name_is_text_whatever_it_looks_like(name: str) -> None:
    quoted = f"'{name}'" if name in ("a: b", "-") else name
    assert LabConfig.from_yaml(f"model: {{name: {quoted}}}").model.name == name


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "yes", "on"])
def test_a_switch_may_say_yes(text: str) -> None:
    assert LabConfig.from_yaml(f"model: {{shard: {text}}}").model.shard is True


AWKWARD = (
    "no",
    "true",
    "null",
    "~",
    "1e-3",
    "1e3",
    "-1E5",
    "1.5",
    ".5",
    "017",
    "12",
    "1_0",
    "2020-01-01",
    "1:30",
    "0x1",
)
AWKWARD += ("*a", "&a", "!t", "<<", "=", "a: b", "a #b", " a ", "", "\n", "a\nb", "\u2028x", "\x85", "é", "😀", ".inf")


@pytest.mark.parametrize("name", [name for name in AWKWARD if name])
def test_what_is_written_reads_back(name: str) -> None:
    config = LabConfig(model=ModelConfig(name=name))
    assert LabConfig.from_yaml(config.to_yaml()) == config


def test_a_written_config_is_plain_yaml_for_others_too() -> None:
    config = LabConfig()
    assert yaml.safe_load(config.to_yaml()) == config.model_dump(mode="json")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_error(path: Path) -> ConfigError:
    began = time.process_time()
    with pytest.raises(ConfigError) as raised:
        LabConfig.load(path)
    assert time.process_time() - began < QUICK_S
    assert raised.value.remedy
    assert len(str(raised.value)) < 1000
    return raised.value


def test_a_file_of_windows_notepad_is_read(tmp_path: Path) -> None:
    assert LabConfig.load(write(tmp_path / "bom.yaml", b"\xef\xbb\xbfseed: 3\r\n")).seed == 3


@pytest.mark.timeout(20)
def test_only_a_regular_file_of_moderate_size_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")  # by a short name: a path of a socket has 108 bytes at most
        for path in (fifo, tmp_path, Path(os.devnull), Path("/dev/zero"), Path("socket")):
            assert "regular file" in str(load_error(path))
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(10**12)
    assert "1,048,576" in str(load_error(large))


def test_other_files_that_are_no_config_are_named(tmp_path: Path) -> None:
    assert "missing.yaml" in str(load_error(tmp_path / "missing.yaml"))
    assert "UTF-8" in str(load_error(write(tmp_path / "latin.yaml", "seed: é".encode("latin-1"))))
    assert "broken.yaml" in str(load_error(write(tmp_path / "broken.yaml", "seed: 1\nseed: 2")))
    load_error(tmp_path / ("x" * 5000))
    load_error(Path("a\0b"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"seed": 10**5000}, ("seed", "digits")),
        ({"seed": [10**5000]}, ("seed",)),
        ({"seed": "x" * 10_000_000}, ("seed", "xxx")),
        ({"model": {"name": [[[[[[[[[["x"]]]]]]]]]]}}, ("model.name",)),
        ({"model": {"name": "\ud800"}}, ("model.name",)),
        ({"seed": object()}, ("seed",)),
        ({3: 4}, ("3",)),
        ({"x" * 1000: 4}, ("xxx",)),
    ],
)
def test_what_was_given_is_echoed_shortly(data: dict[Any, Any], words: tuple[str, ...]) -> None:
    from tvaccine_core.config import parse_config

    with pytest.raises(ConfigError) as raised:
        parse_config(LabConfig, data)
    assert len(str(raised.value)) < 500
    for word in words:
        assert word in str(raised.value)
