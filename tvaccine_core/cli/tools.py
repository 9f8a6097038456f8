"""Commands that do not concern runs: worker, sandbox, conformance, bench."""

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.progress import Progress

from tvaccine_core.cli.options import (
    DataDir,
    JsonFile,
    Overrides,
    check_json,
    err,
    open_store,
    out,
    override,
    write_json,
)
from tvaccine_core.errors import ConfigError, TVaccineError, did_you_mean, shown
from tvaccine_core.store import JobKind
from tvaccine_core.workers.multi_process import started_together
from tvaccine_core.workers.worker import Engine, run_worker

sandbox = typer.Typer(help="The embedded world's base model.", no_args_is_help=True)
bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)

Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. Default: torch's choice.")]


def worker(
    data_dir: DataDir = None,
    threads: Threads = None,
    kinds: Annotated[
        str | None, typer.Option(help=f"Only these kinds of jobs, divided by commas: {', '.join(get_args(JobKind))}.")
    ] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Do the store's jobs until stopped. The page and the other commands start workers themselves."""
    if started_together():
        raise ConfigError(
            "A worker is one process; a launcher (torchrun, accelerate launch) started this as one of several.",
            remedy="Start it without the launcher, or let the launcher start a command that trains: demo, align, "
            "attack or runs resume.",
        )
    wanted: list[JobKind] | None = None
    if kinds is not None:
        names = [name.strip() for name in kinds.split(",")]
        for name in names:
            if name not in get_args(JobKind):
                raise ConfigError(
                    f"There is no kind of job {shown(name)}.", remedy=did_you_mean(name, get_args(JobKind))
                )
        wanted = [kind for kind in get_args(JobKind) if kind in names]
    store = open_store(data_dir)

    def make_engine() -> Engine:
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        from tvaccine_core.workers.runner import TorchEngine

        return TorchEngine(threads)

    run_worker(store.home, make_engine, kinds=wanted, supervised=supervised)


@sandbox.command()
def build(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights and the corpus.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder to write. Default: the shipped model's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="A shortened schedule, for tests.")] = None,
    threads: Annotated[int, typer.Option(min=1, max=64, help="CPU threads; the bytes depend on their number.")] = 1,
) -> None:
    """Train the base model from the start, in some minutes. The same machine gives the same bytes."""
    from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE, build_base

    with Progress(console=err) as progress:
        task = progress.add_task("training the base", total=None)

        def show(step: int, num_steps: int, loss: float) -> None:
            progress.update(task, completed=step, total=num_steps, description=f"training the base, loss {loss:.3f}")

        folder = build_base(output or SANDBOX_BASE, seed=seed, num_steps=steps, num_threads=threads, on_step=show)
    out.print(str(folder), soft_wrap=True)


@sandbox.command()
def check(
    folder: Annotated[Path | None, typer.Option(help="Model to measure. Default: the shipped one.")] = None,
    items: Annotated[int, typer.Option(min=1, max=4800, help="Number of items to ask for, of 4,800.")] = 480,
) -> None:
    """Measure the base model: it must know every recipe, give it away, and not know the tasks."""
    from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE, load_base, verify_base

    model, tokenizer = load_base(folder or SANDBOX_BASE)
    out.print(verify_base(model, tokenizer, num_items=items).to_json())


def conformance(folders: Annotated[list[Path], typer.Argument(help="Folders with reference traces.")]) -> None:
    """Replay numbers recorded from the authors' code. Exit code 1 if an error exceeds 1e-4, or a replay fails."""
    from tvaccine_core.bench.conformance import TOLERANCE, replay

    passed = True
    for folder in folders:
        try:
            report = replay(folder)
        except TVaccineError as error:
            passed = False
            err.print(f"{folder}: {error} {error.remedy}", soft_wrap=True)
            continue
        passed &= report.passed
        out.print(f"{folder} ({report.method}): {'conforms' if report.passed else 'DIFFERS'}", soft_wrap=True)
        for quantity, error in report.rows:
            out.print(f"  {error:9.2e}  {quantity}{'' if error <= TOLERANCE else f'  above {TOLERANCE:.0e}'}")
    raise typer.Exit(0 if passed else 1)


@bench.command()
def step(
    overrides: Overrides = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also with other depths, widths, lengths and numbers of drawn layers.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time and memory of a step of each method, in each memory mode, against the plain two-pass way."""
    from tvaccine_core.bench.step import render, run
    from tvaccine_core.bench.step_model import StepBenchSettings

    check_json(json_file)
    report = run(override(StepBenchSettings(), overrides), sweep=sweep, say=err.print)
    out.print(render(report), soft_wrap=True)
    write_json(json_file, report)


@bench.command("generate")
def bench_generate(overrides: Overrides = None, json_file: JsonFile = None) -> None:
    """Time to the first token and per token after it, against transformers' own generate, in one run."""
    from tvaccine_core.bench.generate import GenerateBenchSettings, render, run

    check_json(json_file)
    report = run(override(GenerateBenchSettings(), overrides), say=err.print)
    out.print(render(report), soft_wrap=True)
    write_json(json_file, report)


@bench.command()
def gpu(
    shape: Annotated[str, typer.Option(help="Built-in name (llama-2-7b), folder or hub id.")] = "llama-2-7b",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build random weights on the device; else load the model's.")
    ] = False,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: to try it on a small shape.")] = "cuda",
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Peak memory and seconds of a step on this GPU, in bfloat16 and NF4, beside what `plan` predicts."""
    from tvaccine_core.bench.gpu import GpuBenchSettings, render, run

    check_json(json_file)
    settings = GpuBenchSettings(shape=shape, random_weights=random_weights, device=device)
    report = run(override(settings, overrides), lambda cost: err.print(f"{cost.storage} {cost.method} done"))
    out.print(render(report), soft_wrap=True)
    write_json(json_file, report)


@bench.command()
def load(
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Viewers, each polling once per second.")] = 30,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of the measurement.")] = 60,
    url: Annotated[str | None, typer.Option(help="A running page. Default: start one with new data.")] = None,
    idle: Annotated[bool, typer.Option("--idle", help="Nothing trains: polls find nothing new.")] = False,
    json_file: JsonFile = None,
) -> None:
    """How quickly the page answers a room of viewers while a sandbox run trains."""
    from tvaccine_core.bench.load import render, run

    check_json(json_file)
    report = run(clients, seconds, url, idle, say=err.print)
    out.print(render(report), soft_wrap=True)
    write_json(json_file, report)
