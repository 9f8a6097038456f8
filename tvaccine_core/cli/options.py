"""What commands share: options, configs with overrides, runs by short names, tables on the right stream, safe files."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from tvaccine_core.config import PRESETS, Config, ConfigT, LabConfig, parse_config
from tvaccine_core.errors import ConfigError, RunNotFoundError, shown
from tvaccine_core.methods import METHODS
from tvaccine_core.orders import with_methods
from tvaccine_core.store import RunRow, Store, default_home, expand_folder


def _read_folder(text: str) -> Path:
    if not text.strip():
        raise ConfigError("--data-dir is given an empty text.", remedy="Give a folder, or leave --data-dir out.")
    return expand_folder(Path(text))


def _one_folder(context: typer.Context, folders: list[Path] | None) -> list[Path]:
    """What `--data-dir` says anywhere in the command line so far. Raises `ConfigError` if it says two things."""
    # `meta` is shared by the contexts of a command and of the groups it stands in; theirs are read before.
    given: dict[str, Path] = context.meta.setdefault(f"{__name__}.folders", {})
    for folder in folders or ():
        given.setdefault(os.path.realpath(folder), folder)  # not Path.resolve, which raises at a loop of links
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
"""The same option of every command and of the groups before it: it counts wherever it stands."""
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the results to this file too.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML config, as `runs export` writes it.")]
PresetName = Annotated[str | None, typer.Option("--preset", help=f"One of: {', '.join(PRESETS)}.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a setting: attack.harmful_ratio=0.2. Repeatable."),
]
MethodNames = Annotated[str | None, typer.Option("--methods", help=f"Comma-separated, of: {', '.join(METHODS)}.")]
RunId = Annotated[str, typer.Option("--run", help="A run's id, the beginning of one, or `latest`.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=64, help="Worker processes. Default: two on a CPU, one with a GPU.")
]

DEFAULT_PRESET = "sandbox-quick"
LIST_RUNS = "List them: python -m tvaccine_core runs list"

out = Console(highlight=False, markup=False)
"""Results."""
err = Console(stderr=True, highlight=False, markup=False)
"""Progress and complaints: standard output stays clean for pipes."""


def open_store(data_dir: Sequence[Path] | None) -> Store:
    """The store that the options name."""
    return Store(data_dir[0] if data_dir else default_home())


def find_run(store: Store, text: str) -> RunRow:
    """The run whose id is or begins with `text`; `latest` for the newest. Raises `RunNotFoundError`."""
    if not text.strip():
        raise RunNotFoundError("An empty text names no run.", remedy=LIST_RUNS)
    runs = store.runs()
    found = runs[:1] if text == "latest" else [run for run in runs if run.id.startswith(text)]
    exact = [run for run in found if run.id == text]
    if len(exact or found) != 1:
        what = "No run" if not found else f"{len(found)} runs"
        raise RunNotFoundError(f"{what} in {store.home} for {shown(text)}.", remedy=LIST_RUNS)
    return (exact or found)[0]


def build_config(
    preset: str | None,
    file: Path | None,
    overrides: Sequence[str] | None,
    methods: str | None = None,
) -> LabConfig:
    """Preset or file, then methods, then overrides. Raises `ConfigError`."""
    if preset and file:
        raise ConfigError("Both --preset and --config are given.", remedy="Give one of them.")
    config = LabConfig.load(file) if file else PRESETS[find_preset(preset)].config
    if methods:
        config = choose_methods(config, methods)
    return override(config, overrides)


def find_preset(name: str | None) -> str:
    """The preset of that name, or the default one. Raises `ConfigError`."""
    if name and name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}.", remedy=f"Choose one of: {', '.join(PRESETS)}.")
    return name or DEFAULT_PRESET


def names_of(methods: str | None) -> list[str]:
    """The names in a comma-separated list; none for None. Raises `ConfigError` for a list that names nothing."""
    names = [name.strip() for name in (methods or "").split(",") if name.strip()]
    if methods is not None and not names:
        raise ConfigError("No method is named.", remedy=f"Give some of: {', '.join(METHODS)}.")
    return names


def choose_methods(config: LabConfig, methods: str) -> LabConfig:
    """The same config with the methods of a comma-separated list; those it has already keep their settings."""
    return with_methods(config, names_of(methods))


def override(config: ConfigT, assignments: Sequence[str] | None, update: dict[str, Any] | None = None) -> ConfigT:
    """`config` with `field.field=value` applied; values are YAML. Methods go by name: alignment.methods.tvaccine.rho=2.

    Raises:
        ConfigError: no assignment, no such field, or a value that is not allowed.
    """
    data = config.model_dump(mode="json")
    for key, value in (update or {}).items():
        data[key] |= value
    for assignment in assignments or ():
        path, sign, text = assignment.partition("=")
        if not sign or not path.strip():
            raise ConfigError(
                f"{assignment!r} sets nothing.", remedy="Write FIELD=VALUE, for example attack.harmful_ratio=0.2."
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value in {assignment!r} cannot be read.", remedy="Quote it.") from error
        _assign(data, path.strip().split("."), value, assignment)
    return parse_config(type(config), data)


def _assign(data: Any, path: list[str], value: Any, assignment: str) -> None:
    *parents, last = path
    for name in parents:
        data = _child(data, name, assignment)
    if not isinstance(data, dict):
        raise _no_field(last, assignment, data)
    data[last] = value


def _child(data: Any, name: str, assignment: str) -> Any:
    if isinstance(data, dict) and name in data:
        return data[name]
    if isinstance(data, list):
        for item in data:
            if isinstance(item, dict) and item.get("name") == name:
                return item
    raise _no_field(name, assignment, data)


def _no_field(name: str, assignment: str, data: Any) -> ConfigError:
    names = list(data) if isinstance(data, dict) else []
    if isinstance(data, list):
        names = [str(item["name"]) for item in data if isinstance(item, dict) and "name" in item]
    remedy = f"There are: {', '.join(names)}." if names else "This field has no parts."
    return ConfigError(f"There is no {name!r} for {assignment!r}.", remedy=remedy)


def check_json(path: Path | None) -> None:
    """Find out before the work, not after it, that the results cannot be written. Raises `ConfigError`."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(f"{path} cannot be written: no such folder, or it is one.", remedy="Give a file's path.")


def write_json(path: Path | None, result: Config | Any) -> None:
    """Write a pydantic model, whole or not at all."""
    if path is None:
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(
            f"Cannot write {path}: {error.strerror or error}", remedy="Give another path, or free some space."
        ) from error
    err.print(f"Results written to {path}")
