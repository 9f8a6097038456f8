"""The command `plan`: will a model fit, and how long will it take."""

import math
from typing import Annotated, Literal

import typer
from rich.table import Table

from tvaccine_core.cli.options import (
    ConfigFile,
    JsonFile,
    Overrides,
    build_config,
    check_json,
    out,
    override,
    specs_of,
    write_json,
)
from tvaccine_core.config import ActivationMemory, LabConfig
from tvaccine_core.config.assign import Assignment, assign
from tvaccine_core.errors import ConfigError
from tvaccine_core.methods import method_info, methods_of, with_defences
from tvaccine_core.plan.advice import CONTEXT_BYTES, GIB, SLACK, advise, judge_fit, published_gb
from tvaccine_core.plan.records import PARTS, MemoryPlan, PlanReport, TimeEstimate

ALIGNMENT = [info.name for info in methods_of("alignment")]
Quantization = Literal["none", "int8", "nf4"]


def plan(
    model: Annotated[str | None, typer.Option(help="Built-in name (llama-2-7b), folder, or hub id.")] = None,
    quantization: Annotated[Quantization | None, typer.Option(help="Storage of the frozen weights.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Unquantised precision. Default: bfloat16 on a GPU.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "--methods",
            help=f"Alignment methods, repeatable or with commas: {', '.join(ALIGNMENT)}.",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=4096, help="Rows of a training batch. Default: 10.")] = None,
    length: Annotated[int | None, typer.Option(min=8, max=32768, help="Tokens of each row. Default: 200.")] = None,
    labelled: Annotated[
        int | None, typer.Option(min=1, help="Labelled tokens per row. Default: all, the worst case.")
    ] = None,
    eval_batch: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Prompts generated at once. Default: as --batch.")
    ] = None,
    activation_memory: Annotated[
        ActivationMemory | None, typer.Option(help="How much is kept for the backward passes. Default: what fits.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help='Does it fit this card? For example "RTX 4090".')] = None,
    memory_gib: Annotated[float | None, typer.Option(min=0.1, help="Does it fit into this many GiB?")] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="Kind of device to plan for.")] = "cuda",
    whole: Annotated[bool, typer.Option("--whole", help="Run every layer instead of extrapolating.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Also time ten steps; needs the weights.")] = False,
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Predict a run's peak memory by part, for each method, from the model's config alone, without its weights."""
    check_json(json_file)
    if memory_gib is not None and not math.isfinite(memory_gib):
        raise ConfigError(f"--memory-gib takes a finite number of GiB, not {memory_gib}.", remedy="Give one, as in 24.")
    config = build_config(None, config_file, None)
    base = config if config_file else _published_setting(config)
    config = with_defences(base, specs_of(methods)) if methods else base
    if model is not None:
        config = assign(config, [Assignment("model.name", model, f"model.name={model}")])
    changes = {
        "model.quantization": quantization,
        "model.activation_memory": activation_memory,
        "model.dtype": dtype or ("bfloat16" if device == "cuda" and config_file is None else None),
        "alignment.optimisation.batch_size": batch,
        "alignment.optimisation.max_length": length,
        "evaluation.batch_size": eval_batch or batch,
    }
    config = override(config, [f"{field}={value}" for field, value in changes.items() if value is not None])
    config = override(config, overrides)

    from tvaccine_core.plan.planner import plan_run
    from tvaccine_core.plan.shapes import find_gpu

    name, memory = find_gpu(gpu) if gpu else ("", None)
    if memory_gib is not None:
        name, memory = f"{memory_gib:g} GiB", memory_gib
    plans = tuple(plan_run(config, device=device, labelled=labelled, memory_gib=memory, whole=whole or None))
    verdicts = {} if memory is None else {plan.method: judge_fit(plan.peak_bytes, memory) for plan in plans}
    report = PlanReport(plans=plans, memory_gib=memory, verdicts=verdicts)
    _show(report, name)
    if probe:
        report = report.model_copy(update={"times": tuple(_probe(config, labelled))})
    write_json(json_file, report)


def _published_setting(config: LabConfig) -> LabConfig:
    """All methods, batches of 10 x 200, and eight layers drawn, as in the T-Vaccine paper."""
    settings = (
        "defences.tvaccine.alignment.num_layers=8",
        "alignment.optimisation.batch_size=10",
        "alignment.optimisation.max_length=200",
        "evaluation.batch_size=10",
    )
    return override(with_defences(config, ALIGNMENT), settings)


def _show(report: PlanReport, name: str) -> None:
    first = report.plans[0]
    stored = first.dtype if first.quantization == "none" else f"{first.quantization} ({first.dtype} arithmetic)"
    out.print(
        f"{first.model}: {first.num_parameters / 1e9:.2f} billion parameters, {first.num_layers} layers, {stored}; "
        f"batch {first.batch_size} x {first.length}, {first.labelled} with labels, {first.source}",
        soft_wrap=True,
    )
    for plan in report.plans:
        out.print(_table(plan))
        published = published_gb(plan)
        if published is not None:
            out.print(f"published for this method and model in bfloat16: about {published} GB (arXiv:2410.09760)")
        if report.memory_gib is not None:
            out.print(f"{name}: {method_info(plan.method).title} {report.verdicts[plan.method]}.", style="bold")
            for sentence in advise(plan, report.memory_gib):
                out.print(f"  try: {sentence}", soft_wrap=True)
    for sentence in dict.fromkeys(sentence for plan in report.plans for sentence in plan.assumptions):
        out.print(f"Assumed: {sentence}.", soft_wrap=True)
    if report.memory_gib is not None:
        out.print(f"Fits: with {CONTEXT_BYTES / GIB:.1f} GiB of context and {SLACK:.0%} of gaps. GB are 10^9 bytes.")


def _table(plan: MemoryPlan) -> Table:
    title = (
        f"{method_info(plan.method).title}, activation memory {plan.activation_memory}: "
        f"{plan.peak_bytes / 1e9:.2f} GB ({plan.worst.phase} sets the peak)"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("GB")
    for phase in plan.phases:
        table.add_column(phase.phase, justify="right")
    for part in PARTS:
        if any(phase.parts[part] for phase in plan.phases):
            table.add_row(part, *(f"{phase.parts[part] / 1e9:.2f}" for phase in plan.phases))
    table.add_row("peak", *(f"{phase.peak_bytes / 1e9:.2f}" for phase in plan.phases), style="bold")
    return table


def _probe(config: LabConfig, labelled: int | None) -> list[TimeEstimate]:
    from tvaccine_core.errors import ModelError
    from tvaccine_core.plan.planner import workload_of
    from tvaccine_core.plan.probe import probe_times
    from tvaccine_core.plan.shapes import BUILT_IN

    if config.model.name.lower() in BUILT_IN:
        raise ModelError(
            f"{config.model.name} names sizes, not weights, and a probe runs real steps.",
            remedy="Give the model's folder or its hub id, or leave --probe out.",
        )
    times: list[TimeEstimate] = []
    for time in probe_times(config, workload_of(config, labelled)):
        times.append(time)
        out.print(
            f"{method_info(time.method).title} on {time.device}: {time.step_s:.3f} s per step (median of "
            f"{time.timed_steps}), {time.scoring_s:.2f} s per scoring; {time.steps} steps take about "
            f"{time.total_s / 60:.1f} minutes, evaluations not counted",
            soft_wrap=True,
        )
    return times
