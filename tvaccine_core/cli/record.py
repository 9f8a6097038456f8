"""The command `record`: makes the recorded runs that ship with the lab."""

from pathlib import Path
from typing import Annotated

import typer

from tvaccine_core import orders
from tvaccine_core.cli.follow import follow
from tvaccine_core.cli.options import DataDir, Workers, open_store, out
from tvaccine_core.config import PRESETS, LabConfig
from tvaccine_core.errors import ConfigError, StoreError, did_you_mean, shown
from tvaccine_core.methods import with_defences
from tvaccine_core.store.recorded import RECORDINGS, SUFFIX
from tvaccine_core.store.recorded import record as recorded
from tvaccine_core.whole_folders import write_whole

DEFENCES = {
    "sandbox-intact": ("sft", "vaccine rho=3", "tvaccine"),
    "sandbox-published": ("sft", "vaccine rho=3", "tvaccine rho=10"),
    "sandbox-manners": ("sft", "vaccine", "tvaccine"),
}
"""Preset -> the defences that its recording compares."""


def config_of(preset: str) -> LabConfig:
    """The config of a recording."""
    return with_defences(PRESETS[preset].config, DEFENCES[preset])


def name_of(preset: str) -> str:
    """The name of a recording's run."""
    return f"Recorded: {PRESETS[preset].title}"


def record(
    presets: Annotated[
        list[str] | None, typer.Argument(help=f"Presets to record. Default: {', '.join(DEFENCES)}.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the recordings.")] = RECORDINGS,
    workers: Workers = None,
    data_dir: DataDir = None,
) -> None:
    """Make the recorded runs that the page shows before anything is run here. A finished run is not made again."""
    store = open_store(data_dir)
    for preset in presets or DEFENCES:
        if preset not in DEFENCES:
            raise ConfigError(f"There is no recording of {shown(preset)}.", remedy=did_you_mean(preset, DEFENCES))
        config, name = config_of(preset), name_of(preset)
        run_id = next((run.id for run in store.runs() if run.name == name and not run.recorded), None)
        if run_id is None or store.run(run_id).config != config:
            run_id = orders.start_run(store, config, name, attack=True).run_id
        else:
            orders.resume(store, run_id, ("align", "baseline", "attack", "repair"))
        jobs = follow(store, [job.id for job in store.jobs(run_id)], num_workers=workers)
        failed = [job for job in jobs if job.state != "done"]
        if failed:
            raise StoreError(
                f"{failed[0].title}: {failed[0].state}. {failed[0].error or ''}", remedy="Run the same command again."
            )
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{preset}{SUFFIX}"
        write_whole(path, recorded(store, run_id, name))
        out.print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", soft_wrap=True)
