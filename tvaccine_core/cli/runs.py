"""`runs`: list, show, delete, export, resume."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tvaccine_core import orders
from tvaccine_core.cli.follow import explain, follow
from tvaccine_core.cli.options import (
    LIST_RUNS,
    DataDir,
    JsonFile,
    Workers,
    check_json,
    err,
    find_run,
    open_store,
    out,
    write_json,
)
from tvaccine_core.cli.tables import render
from tvaccine_core.errors import ConfigError, StoreError
from tvaccine_core.results import collect, make_report
from tvaccine_core.store.export import export_run, repeatable
from tvaccine_core.store.schema import WORK_KINDS

app = typer.Typer(help="List, show, delete, export and resume runs.")

RunArgument = Annotated[str, typer.Argument(help="A run's id, the beginning of one, or `latest`.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context, data_dir: DataDir = None) -> None:
    """Without a command: the list."""
    if context.invoked_subcommand is None:
        list_runs(data_dir)


@app.command("list")
def list_runs(data_dir: DataDir = None) -> None:
    """Every run, newest first."""
    store = open_store(data_dir)
    table = Table(title=f"Runs in {store.home}", title_justify="left")
    for title in ("id", "name", "created (UTC)", "status"):
        table.add_column(title, overflow="fold")
    for run in store.runs():
        table.add_row(run.id, run.name, f"{run.created_at:%Y-%m-%d %H:%M}", run.status)
    out.print(table)


@app.command()
def show(run: RunArgument = "latest", data_dir: DataDir = None, json_file: JsonFile = None) -> None:
    """A run's jobs and scores."""
    check_json(json_file)
    store = open_store(data_dir)
    row = find_run(store, run)
    out.print(f"{row.id}  {row.name}  {row.status}\nFiles: {store.run_dir(row.id)}", soft_wrap=True)
    table = Table(title="Jobs", title_justify="left")
    for title in ("job", "state", "steps", "what went wrong, what to do"):
        table.add_column(title, overflow="fold")
    for job in store.jobs(row.id):
        if job.kind != "generate":
            steps = f"{job.done}/{job.total}" if job.total else ""
            table.add_row(job.title, job.state, steps, " ".join(filter(None, (job.error, job.remedy))))
    out.print(table)
    report = make_report("runs show", repeatable(store, row.id)[0], [collect(store, row.id)], 0.0)
    for scores in render(report.runs):
        out.print(scores)
    write_json(json_file, report)


@app.command()
def delete(
    run: Annotated[str, typer.Argument(help="A run's id, or the beginning of one.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete a run: its rows and its folder, and nothing else."""
    if run.strip() == "latest":  # it means another run as soon as another program makes one
        raise ConfigError("A run is deleted by its id, not as `latest`.", remedy=LIST_RUNS)
    store = open_store(data_dir)
    row = find_run(store, run)
    if not yes:
        typer.confirm(f"Delete run {row.id} ({row.name}) and {store.run_dir(row.id)}?", abort=True)
    store.delete_run(row.id)
    err.print(f"Deleted {row.id}")


@app.command()
def export(
    run: RunArgument = "latest",
    folder: Annotated[Path | None, typer.Option(help="New folder. Default: ./tvaccine-<run id>.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write settings, records, scores, answers and adapters to a folder."""
    store = open_store(data_dir)
    row = find_run(store, run)
    target = export_run(store, row.id, folder or Path(f"tvaccine-{row.id}"))
    out.print(str(target), soft_wrap=True)
    config = shlex.quote(str(target / "config.yaml"))
    err.print(f"Alignment and first attack again: python -m tvaccine_core demo --config {config}", soft_wrap=True)


@app.command()
def resume(run: RunArgument = "latest", workers: Workers = None, data_dir: DataDir = None) -> None:
    """Go on with what was interrupted, cancelled or failed, from the last checkpoints."""
    store = open_store(data_dir)
    row = find_run(store, run)
    resumed = orders.resume(store, row.id, WORK_KINDS)
    waiting = [job.id for job in store.jobs(row.id, states=("queued", "running")) if job.kind != "generate"]
    if not waiting:
        raise StoreError(f"Run {row.id} has nothing to resume.", remedy="See: python -m tvaccine_core runs show")
    jobs = follow(store, [*resumed, *(job for job in waiting if job not in resumed)], num_workers=workers)
    fine = explain(jobs)
    for table in render([collect(store, row.id)]):
        out.print(table)
    raise typer.Exit(0 if fine else 1)
