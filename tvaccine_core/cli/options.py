"""Shared parts of the commands: options, configs with overrides, runs by short names, output streams, safe files."""

import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tvaccine_core.config import PRESETS, Config, ConfigT, LabConfig
from tvaccine_core.config.assign import REMEDY, Assignment, assign
from tvaccine_core.errors import ConfigError, RunNotFoundError, cut, did_you_mean, shown
from tvaccine_core.methods import METHODS, with_defences
from tvaccine_core.safe_yaml import MAX_VALUE, read_yaml
from tvaccine_core.store import RunRow, Store, default_home, expand_folder


def _read_folder(text: str) -> Path:
    if not text.strip():
        raise ConfigError("--data-dir is given an empty text.", remedy="Give a folder, or leave --data-dir out.")
    return expand_folder(Path(text))


def _one_folder(context: typer.Context, folders: list[Path] | None) -> list[Path]:
    """The folder that `--data-dir` names anywhere in the command line. Raises `ConfigError` if it names two."""
    # The contexts of a command and of its groups share `meta`; the groups' options are read first.
    given: dict[str, Path] = context.meta.setdefault(f"{__name__}.folders", {})
    for folder in folders or ():
        given.setdefault(os.path.realpath(folder), folder)  # not Path.resolve, which raises for a loop of links
    if len(given) > 1:
        names = " and ".join(shown(str(folder)) for folder in given.values())
        raise ConfigError(f"--data-dir is given as {names}.", remedy="Give one folder, before or after the command.")
    return list(given.values())


DataDir = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        parser=_read_folder,
        callback=_one_folder,
        help="Where runs are kept. Default: TVACCINE_HOME, else the system's place for application data.",
    ),
]
"""One option for every command and the groups before it: it counts wherever it stands."""
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the results to this file too.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML config, as `runs export` writes it.")]
PresetName = Annotated[str | None, typer.Option("--preset", help=f"One of: {', '.join(PRESETS)}.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a setting: attack.harmful_ratio=0.2. Repeatable."),
]
DefenceNames = Annotated[
    list[str] | None,
    typer.Option(
        "--defence",
        "--methods",
        help="A defence of the run or preset, or one in short: its alignment method, and methods of other stages "
        "joined by +; settings may follow a method, as in 'tvaccine rho=3'. Repeatable, or with commas. "
        f"Methods: {', '.join(METHODS)}.",
    ),
]
RunId = Annotated[str, typer.Option("--run", help="A run's id, the beginning of one, or `latest`.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=64, help="Worker processes. Default: two on a CPU, one with a GPU.")
]

DEFAULT_PRESET = "sandbox-intact"
LIST_RUNS = "List them: python -m tvaccine_core runs list"

out = Console(highlight=False, markup=False)
"""Results."""
err = Console(stderr=True, highlight=False, markup=False)
"""Progress and errors go here: standard output stays clean for pipes."""


def open_store(data_dir: Sequence[Path] | None) -> Store:
    """The store that the options name."""
    return Store(data_dir[0] if data_dir else default_home())


def find_run(store: Store, text: str) -> RunRow:
    """The run whose id is or begins with `text`; `latest` for the newest. Raises `RunNotFoundError`."""
    if not text.strip():
        raise RunNotFoundError("An empty text names no run.", remedy=LIST_RUNS)
    runs = store.runs()
    newest = [run for run in runs if not run.recorded][:1]
    found = newest if text == "latest" else [run for run in runs if run.id.startswith(text)]
    exact = [run for run in found if run.id == text]
    if len(exact or found) != 1:
        what = "No run" if not found else f"{len(found)} runs"
        raise RunNotFoundError(f"{what} in {store.home} for {shown(text)}.", remedy=LIST_RUNS)
    return (exact or found)[0]


def build_config(
    preset: str | None,
    file: Path | None,
    overrides: Sequence[str] | None,
    defences: Sequence[str] | None = None,
) -> LabConfig:
    """Preset or file, then defences, then overrides. Raises `ConfigError`."""
    if preset is not None and file is not None:
        raise ConfigError("Both --preset and --config are given.", remedy="Give one of them.")
    config = LabConfig.load(file) if file is not None else PRESETS[find_preset(preset)].config
    if defences:
        config = with_defences(config, specs_of(defences))
    return override(config, overrides)


def find_preset(name: str | None) -> str:
    """The preset of that name, or the default one. Raises `ConfigError`."""
    if name is not None and name not in PRESETS:
        raise ConfigError(f"There is no preset {shown(name)}.", remedy=did_you_mean(name, PRESETS))
    return DEFAULT_PRESET if name is None else name


def specs_of(defences: Sequence[str] | None) -> list[str]:
    """The defences that options name; an option may name several, divided by commas. Raises `ConfigError`."""
    specs = [spec.strip() for text in defences or () for spec in text.split(",") if spec.strip()]
    if defences and not specs:
        raise ConfigError("No defence is named.", remedy=f"Join methods by +; there are: {', '.join(METHODS)}.")
    return specs


def override(config: ConfigT, assignments: Sequence[str] | None) -> ConfigT:
    """`config` with `field.field=value` applied; values are YAML. Defences go by name:
    defences.tvaccine.alignment.rho=2.

    A mapping changes only the settings that it names: model={name: mine, device: cpu}.

    Raises:
        ConfigError: not an assignment, no such field, or a value that is not allowed.
    """
    made: list[Assignment] = []
    for text in assignments or ():
        path, sign, given = text.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"{shown(text)} sets nothing.", remedy=REMEDY)
        what = f"The value in {shown(text)}"
        value = read_yaml(given, what, remedy="Quote it, as --set takes YAML.", max_size=MAX_VALUE)
        made.append(Assignment(path, value, text))
    return assign(config, made)


def check_json(path: Path | None) -> None:
    """Raise `ConfigError` before the work, not after it, if the results cannot be written."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        partial = _partial(path)
        partial.touch()
        partial.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{cut(str(path), 200)} cannot be written: {reason}.", remedy="Give a file's path."
        ) from error


def write_json(path: Path | None, result: Config | Any) -> None:
    """Write a pydantic model, whole or not at all."""
    if path is None:
        return
    partial = _partial(path)
    try:
        partial.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(
            f"Cannot write {path}: {error.strerror or error}", remedy="Give another path, or free some space."
        ) from error
    err.print(f"Results written to {path}")


def _partial(path: Path) -> Path:
    """The file that becomes `path` when it is whole. Raises `ValueError` if `path` is not a file's name."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
