"""Commands that make and continue runs: demo, align, attack, evaluate, judge, generate."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from tvaccine_core import orders
from tvaccine_core.cli.follow import explain, follow
from tvaccine_core.cli.options import (
    ConfigFile,
    DataDir,
    DefenceNames,
    JsonFile,
    Overrides,
    PresetName,
    RunId,
    Workers,
    build_config,
    check_json,
    err,
    find_run,
    open_store,
    out,
    override,
    specs_of,
    write_json,
)
from tvaccine_core.cli.tables import render
from tvaccine_core.errors import ConfigError, RunNotFoundError
from tvaccine_core.evaluation.judges import JUDGES, judge_named
from tvaccine_core.names import BASE, attacked_state, repaired_state
from tvaccine_core.plain_text import check_prompt
from tvaccine_core.records import AnswerRecord, Record, StateRecord
from tvaccine_core.results import collect, make_report
from tvaccine_core.store import Store
from tvaccine_core.store.export import repeatable


def demo(
    defences: DefenceNames = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs, with alignment seeds 0, 1, …")] = 1,
    preset: PresetName = None,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
) -> None:
    """Align, attack and compare, from start to end, and print HS and FA before and after."""
    began = time.monotonic()
    check_json(json_file)
    config = build_config(preset, config_file, overrides, defences)
    orders.check(config)
    store = open_store(data_dir)
    run_ids: list[str] = []
    job_ids: list[str] = []
    for seed in range(seeds):
        seeded = config if seeds == 1 else override(config, [f"seed={seed}"])
        order = orders.start_run(store, seeded, f"demo, seed {seeded.seed}", attack=True)
        run_ids.append(order.run_id)
        job_ids += order.jobs
    jobs = follow(store, job_ids, num_workers=workers)
    fine = explain(jobs)
    report = make_report("demo", config, [collect(store, run_id) for run_id in run_ids], time.monotonic() - began)
    for table in render(report.runs):
        out.print(table)
    out.print(f"{report.wall_s:.0f} s from start to end")
    write_json(json_file, report)
    raise typer.Exit(0 if fine else 1)


def align(
    defences: DefenceNames = None,
    run: Annotated[str | None, typer.Option(help="Align in this run; default: a new one.")] = None,
    preset: PresetName = None,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
) -> None:
    """Align a model for one or several defences, and measure the base too."""
    check_json(json_file)
    store = open_store(data_dir)
    if run is not None:
        if preset or config_file or overrides or name:
            raise ConfigError("A run's settings are fixed.", remedy="Leave out --run to make a new run.")
        order = orders.align(store, find_run(store, run).id, specs_of(defences))
    else:
        order = orders.start_run(store, build_config(preset, config_file, overrides, defences), name)
    _finish("align", store, order, workers, json_file)


def attack(
    run: RunId = "latest",
    defences: DefenceNames = None,
    overrides: Overrides = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
) -> None:
    """Attack the defences of a run. Change the attack by --set attack.…"""
    check_json(json_file)
    store = open_store(data_dir)
    row = find_run(store, run)
    config = override(row.config, overrides)
    if config.model_copy(update={"attack": row.config.attack}) != row.config:
        raise ConfigError(
            "Only settings that begin with `attack.` may be changed here.",
            remedy="The model is aligned already; make a new run with `align`.",
        )
    order = orders.start_attack(store, row.id, config.attack, specs_of(defences))
    _finish("attack", store, order, workers, json_file)


def evaluate(
    run: RunId = "latest",
    state: Annotated[list[str] | None, typer.Option(help="A state: base, aligned/sft, … Default: all.")] = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
) -> None:
    """Measure saved model states again, with the run's settings: the numbers must not change."""
    check_json(json_file)
    store = open_store(data_dir)
    row = find_run(store, run)
    steps = _steps_of_states(store, row.id)
    chosen = _choose_states(steps, state, row.id)
    order = orders.evaluate(store, row.id, {name: steps[name] for name in chosen})
    _finish("evaluate", store, order, workers, json_file)


def judge(
    judge: Annotated[str, typer.Argument(help=f"Who reads the answers: {', '.join(JUDGES)}.")],
    run: RunId = "latest",
    workers: Workers = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
) -> None:
    """Let a second judge read a run's saved answers, and print its scores. Nothing is generated again."""
    check_json(json_file)
    store = open_store(data_dir)
    row = find_run(store, run)
    order = orders.judge(store, row.id, judge)
    _finish("judge", store, order, workers, json_file, judge_named(row.config.data, judge))


class Answers(Record):
    """The file that `generate` writes."""

    run_id: str
    prompt: str
    answers: tuple[AnswerRecord, ...]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    run: RunId = "latest",
    state: Annotated[list[str] | None, typer.Option(help="A state: base, aligned/sft, … Default: all.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, max=4096, help="Longest answer.")] = None,
    data_dir: DataDir = None,
    json_file: JsonFile = None,
) -> None:
    """Ask several model states one prompt, side by side."""
    check_json(json_file)
    prompt = check_prompt(prompt)
    store = open_store(data_dir)
    row = find_run(store, run)
    states = _choose_states(_steps_of_states(store, row.id), state, row.id)
    params: dict[str, Any] = {"prompt": prompt, "states": states, "owner": "command line"}
    if max_new_tokens:
        params["max_new_tokens"] = max_new_tokens
    job_id = store.enqueue(row.id, "generate", params)
    answers: dict[str, AnswerRecord] = {}

    def look() -> None:
        for stored in store.events(row.id, kinds=("answer",), job_id=job_id):
            if isinstance(stored.event, AnswerRecord):
                answers[stored.event.state] = stored.event
        live.update(_answer_table(states, answers))

    with Live(_answer_table(states, answers), console=out, auto_refresh=False, transient=True) as live:
        jobs = follow(store, [job_id], num_workers=1, on_poll=look, quiet=True)
        look()
    out.print(_answer_table(states, answers))
    found = tuple(answers[name] for name in states if name in answers)
    write_json(json_file, Answers(run_id=row.id, prompt=prompt, answers=found))
    raise typer.Exit(0 if explain(jobs) else 1)


def _finish(
    command: str, store: Store, order: orders.Order, workers: int | None, json_file: JsonFile, judge: str = ""
) -> None:
    """Follow the jobs, print the run's scores by `judge` (by default its own judge), and exit."""
    began, run_id = time.monotonic(), order.run_id
    err.print(f"Run {run_id} in {store.home}", soft_wrap=True)
    fine = explain(follow(store, order.jobs, num_workers=workers))
    report = make_report(
        command, repeatable(store, run_id)[0], [collect(store, run_id, judge)], time.monotonic() - began
    )
    for table in render(report.runs):
        out.print(table)
    write_json(json_file, report)
    raise typer.Exit(0 if fine else 1)


def _steps_of_states(store: Store, run_id: str) -> dict[str, int]:
    """Saved states of a run -> number of attack steps."""
    steps = {BASE: 0}
    attacks: dict[str, int] = {}
    for job in store.jobs(run_id):
        if job.kind == "attack":
            defence, attack_id = job.params["defence"], job.params["attack_id"]
            num_steps = int(job.params["attack"]["optimisation"]["steps"])
            attacks |= dict.fromkeys(
                (attacked_state(defence, attack_id), repaired_state(defence, attack_id)), num_steps
            )
    for stored in store.events(run_id, kinds=("state",)):
        if isinstance(stored.event, StateRecord):
            steps[stored.event.state] = attacks.get(stored.event.state, 0)
    return steps


def _choose_states(steps: dict[str, int], wanted: Sequence[str] | None, run_id: str) -> list[str]:
    for name in wanted or ():
        if name not in steps:
            raise RunNotFoundError(f"Run {run_id} has no state {name!r}.", remedy=f"It has: {', '.join(steps)}.")
    return list(wanted or steps)


def _answer_table(states: Sequence[str], answers: dict[str, AnswerRecord]) -> Table:
    table = Table(show_lines=True)
    for title in ("state", "weights", "answer", "verdict"):
        table.add_column(title)
    for name in states:
        answer = answers.get(name)
        verdict = ""
        if answer and answer.verdict:
            verdict = ", ".join(key for key, value in answer.verdict.model_dump().items() if value) or "none"
        table.add_row(name, answer.state_hash[:8] if answer else "", answer.text if answer else "…", verdict)
    return table
