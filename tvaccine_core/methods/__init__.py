"""The table of methods, stage by stage. Reading it needs no torch; a method's class is imported when it runs.

Adding a method = one config in `config/defences.py`, one file here, one entry in `METHODS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvaccine_core.config import (
    AllDataConfig,
    Config,
    Defence,
    IdentityConfig,
    LabConfig,
    NoRepairConfig,
    PlainConfig,
    SFTConfig,
    Stage,
    StageConfig,
    TVaccineConfig,
    VaccineConfig,
    parse_config,
    parse_defence,
    read_short,
)
from tvaccine_core.errors import ConfigError, did_you_mean, shown
from tvaccine_core.methods import capabilities as known
from tvaccine_core.methods.capabilities import Capabilities, WorstCase
from tvaccine_core.models.files import ModelFacts

if TYPE_CHECKING:
    from tvaccine_core.methods.base import Method


@dataclass(frozen=True)
class MethodInfo:
    """A method's entry: what users read of it, and what the program must know of it."""

    name: str
    title: str
    paper: str
    """Authors, year and arXiv id; empty where there is no paper."""
    stage: Stage
    cost: str
    """Cost of a step, in passes through the model."""
    config: type[Config]
    path: str
    """`module:Class`, imported by `load_method`; empty for a method that trains nothing."""
    description: str
    colour: str
    """Okabe-Ito colour that means this method in every chart, table and pane."""
    records: tuple[str, ...] = ()
    """Kinds of records that it writes beside the metrics of its steps; see `records`."""
    capabilities: Callable[[Any], Capabilities] = known.nothing_special
    """What it does under given settings."""
    worst_case: Callable[[Any], WorstCase] = WorstCase
    """Its settings for the memory plan."""
    typical: Callable[[Any], Config] = known.as_it_is
    """Its settings for a few timed steps, chosen so that their median is that of a long run."""
    check: Callable[[Any, ModelFacts], None] = known.fits_any_model
    """Raises `ConfigError` if its settings do not fit the facts that are known of a model before it is loaded."""


METHODS: dict[str, MethodInfo] = {
    "all": MethodInfo(
        name="all",
        title="All data",
        paper="",
        stage="selection",
        cost="nothing",
        config=AllDataConfig,
        path="",
        description="The provider aligns on all of the alignment data.",
        colour="#999999",
    ),
    "sft": MethodInfo(
        name="sft",
        title="SFT",
        paper="",
        stage="alignment",
        cost="one forward and one backward pass",
        config=SFTConfig,
        path="tvaccine_core.methods.alignment.sft:SFT",
        description="Supervised fine-tuning on the alignment data: the undefended twin.",
        colour="#E69F00",
    ),
    "vaccine": MethodInfo(
        name="vaccine",
        title="Vaccine",
        paper="Huang, Hu and Liu, 2024, arXiv:2402.01109",
        stage="alignment",
        cost="two forward and two backward passes",
        config=VaccineConfig,
        path="tvaccine_core.methods.alignment.vaccine:Vaccine",
        description="Trains under the worst small shift of the hidden states, in every layer.",
        colour="#009E73",
        capabilities=known.vaccine,
    ),
    "tvaccine": MethodInfo(
        name="tvaccine",
        title="T-Vaccine",
        paper="Liu et al., 2024, arXiv:2410.09760",
        stage="alignment",
        cost="two passes from the lowest drawn layer up, one below it, and a scoring pass now and then",
        config=TVaccineConfig,
        path="tvaccine_core.methods.alignment.tvaccine:TVaccine",
        description="Trains under the worst small shift of the hidden states of safety-critical layers, "
        "drawn by the gradient norm of harmful data; freezes the rest.",
        colour="#0072B2",
        records=("layer_scores", "layer_draw"),
        capabilities=known.tvaccine,
        worst_case=known.tvaccine_worst_case,
        typical=known.tvaccine_typical,
        check=known.tvaccine_check,
    ),
    "plain": MethodInfo(
        name="plain",
        title="Plain",
        paper="Qi et al., 2023, arXiv:2310.03693",
        stage="finetuning",
        cost="one forward and one backward pass",
        config=PlainConfig,
        path="tvaccine_core.methods.finetuning.plain:Plain",
        description="Fine-tunes on the user's data as it is.",
        colour="#999999",
    ),
    "none": MethodInfo(
        name="none",
        title="No repair",
        paper="",
        stage="repair",
        cost="nothing",
        config=NoRepairConfig,
        path="",
        description="Nothing follows the user's fine-tuning.",
        colour="#999999",
    ),
    "identity": MethodInfo(
        name="identity",
        title="Identity",
        paper="",
        stage="repair",
        cost="nothing",
        config=IdentityConfig,
        path="",
        description="A repair that changes nothing: the control that every other repair is measured against.",
        colour="#CC79A7",
    ),
}


def method_info(name: str) -> MethodInfo:
    """The entry of `name`. Raises `ConfigError` naming the methods that exist."""
    if name not in METHODS:
        raise ConfigError(f"Unknown method {shown(name)}.", remedy=did_you_mean(name, METHODS))
    return METHODS[name]


def methods_of(stage: Stage) -> list[MethodInfo]:
    """The methods of a stage, its plain one first."""
    return [info for info in METHODS.values() if info.stage == stage]


def capabilities_of(settings: Config) -> Capabilities:
    """What the method with these settings does."""
    return method_info(getattr(settings, "name", "")).capabilities(settings)


def worst_case_of(settings: Config) -> WorstCase:
    """The method with these settings, as the memory plan needs it."""
    return method_info(getattr(settings, "name", "")).worst_case(settings)


def settings_of(config: LabConfig, name: str) -> StageConfig:
    """The settings of a method as a defence of `config` has them; one called by its methods alone goes before others.
    A method that none has gets its defaults; where it perturbs, it does so as often as the config's other methods, so
    that they can be compared.

    Raises:
        ConfigError: there is no such method.
    """
    info = method_info(name)
    plain_first = sorted(config.defences, key=lambda defence: defence.name != defence.spec)
    given = next((method for defence in plain_first if (method := defence.method(info.stage)).name == name), None)
    if given is not None:
        return given
    settings = info.config()
    others = (getattr(defence.alignment, "perturb_every", None) for defence in config.defences)
    shared = next((every for every in others if every), None)
    if shared and "perturb_every" in type(settings).model_fields:
        settings = settings.model_copy(update={"perturb_every": shared})
    return settings  # pyright: ignore[reportReturnType] - an entry's config is a stage's


def title_of(defence: Defence) -> str:
    """What users read: `T-Vaccine + Identity`, `T-Vaccine (rho 3)`; a defence with a name of its own keeps it."""
    if not defence.short:
        return defence.name
    parts = []
    for name, settings in read_short(defence.short).values():
        told = ", ".join(f"{setting.replace('_', ' ')} {value}" for setting, value in settings.items())
        parts.append(METHODS[name].title + (f" ({told})" if told else ""))
    return " + ".join(parts)


def defence_of(config: LabConfig, spec: str) -> Defence:
    """The defence of `config` called `spec`, else the defence that `spec` spells. Raises `ConfigError`."""
    for defence in config.defences:
        if defence.name == spec:
            return defence
    return parse_defence(spec, lambda name: settings_of(config, name))


def with_defences(config: LabConfig, specs: Sequence[str]) -> LabConfig:
    """The same config with these defences; defences that it has keep their settings. Raises `ConfigError`."""
    chosen = [defence_of(config, spec).model_dump(mode="json") for spec in specs]
    return parse_config(LabConfig, {**config.model_dump(mode="json"), "defences": chosen})


def load_method(config: Config) -> Method:
    """Import the class of the method with these settings and make it. Imports torch."""
    module, _, name = method_info(getattr(config, "name", "")).path.partition(":")
    return getattr(importlib.import_module(module), name)(config)
