"""The table of methods. Reading it needs no torch; a method's class is imported when it runs.

Adding a method = one config in `config.py`, one file here, one entry in `METHODS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tvaccine_core.config import Config, LabConfig, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError, did_you_mean, shown
from tvaccine_core.methods import capabilities as known
from tvaccine_core.methods.capabilities import Capabilities, WorstCase
from tvaccine_core.model_files import ModelFacts

if TYPE_CHECKING:
    from tvaccine_core.methods.base import Method

Stage = Literal["alignment_stage", "finetuning_stage", "post_finetuning_stage"]


@dataclass(frozen=True)
class MethodInfo:
    """What the face and the command line show of a method."""

    name: str
    title: str
    paper: str
    """Authors, year and arXiv id; empty where there is no paper."""
    stage: Stage
    cost: str
    """Cost of a step, in passes through the model."""
    config: type[Config]
    path: str
    """`module:Class`, imported by `load_method`."""
    description: str
    colour: str
    """Okabe-Ito colour that means this method in every chart, table and pane."""
    records: tuple[str, ...] = ()
    """Kinds of records of its own, beside the metrics of its steps; see `records`."""
    capabilities: Callable[[Any], Capabilities] = known.nothing_special
    """What it does under given settings."""
    worst_case: Callable[[Any], WorstCase] = WorstCase
    """Its settings for the memory plan."""
    typical: Callable[[Any], Config] = known.as_it_is
    """Its settings for a few timed steps, whose median is to be that of a long run."""
    check: Callable[[Any, ModelFacts], None] = known.fits_any_model
    """Raises `ConfigError` if its settings do not fit what is known of the model before it is loaded."""


METHODS: dict[str, MethodInfo] = {
    "sft": MethodInfo(
        name="sft",
        title="SFT",
        paper="",
        stage="alignment_stage",
        cost="one forward and one backward pass",
        config=SFTConfig,
        path="tvaccine_core.methods.sft:SFT",
        description="Supervised fine-tuning on the alignment data: the undefended twin.",
        colour="#E69F00",
    ),
    "vaccine": MethodInfo(
        name="vaccine",
        title="Vaccine",
        paper="Huang, Hu and Liu, 2024, arXiv:2402.01109",
        stage="alignment_stage",
        cost="two forward and two backward passes",
        config=VaccineConfig,
        path="tvaccine_core.methods.vaccine:Vaccine",
        description="Trains under the worst small shift of the hidden states, in every layer.",
        colour="#009E73",
        capabilities=known.vaccine,
    ),
    "tvaccine": MethodInfo(
        name="tvaccine",
        title="T-Vaccine",
        paper="Liu et al., 2024, arXiv:2410.09760",
        stage="alignment_stage",
        cost="two passes from the lowest drawn layer up, one below it, and a scoring pass now and then",
        config=TVaccineConfig,
        path="tvaccine_core.methods.tvaccine:TVaccine",
        description="Trains under the worst small shift of the hidden states of safety-critical layers, "
        "drawn by the gradient norm of harmful data; freezes the rest.",
        colour="#0072B2",
        records=("layer_scores", "layer_draw"),
        capabilities=known.tvaccine,
        worst_case=known.tvaccine_worst_case,
        typical=known.tvaccine_typical,
        check=known.tvaccine_check,
    ),
}


def method_info(name: str) -> MethodInfo:
    """The entry of `name`. Raises `ConfigError` naming what is allowed."""
    if name not in METHODS:
        raise ConfigError(f"Unknown method {shown(name)}.", remedy=did_you_mean(name, METHODS))
    return METHODS[name]


def capabilities_of(settings: Config) -> Capabilities:
    """What the method with these settings does."""
    return method_info(getattr(settings, "name", "")).capabilities(settings)


def worst_case_of(settings: Config) -> WorstCase:
    """The method with these settings as the memory plan must see it."""
    return method_info(getattr(settings, "name", "")).worst_case(settings)


def settings_of(config: LabConfig, name: str) -> Config:
    """The settings of a method in `config`; one that is not in it has its defaults, and the others' `perturb_every`.

    Raises:
        ConfigError: there is no such method.
    """
    methods = config.alignment.methods
    given = next((method for method in methods if method.name == name), None)
    if given is not None:
        return given
    settings = method_info(name).config()
    shared = next((every for method in methods if (every := getattr(method, "perturb_every", None))), None)
    if shared and "perturb_every" in type(settings).model_fields:
        return settings.model_copy(update={"perturb_every": shared})  # else they could not be compared
    return settings


def load_method(config: Config) -> Method:
    """Import the class of the method with these settings and make it. Imports torch."""
    module, _, name = method_info(getattr(config, "name", "")).path.partition(":")
    return getattr(importlib.import_module(module), name)(config)
