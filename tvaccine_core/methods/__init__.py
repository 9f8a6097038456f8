"""The table of methods. Reading it needs no torch; a method's class is imported when it runs.

Adding a method = one config in `config.py`, one file here, one entry in `METHODS`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tvaccine_core.config import Config, LabConfig, MethodConfig, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError, did_you_mean, shown

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
    ),
}


def method_info(name: str) -> MethodInfo:
    """The entry of `name`. Raises `ConfigError` naming what is allowed."""
    if name not in METHODS:
        raise ConfigError(f"Unknown method {shown(name)}.", remedy=did_you_mean(name, METHODS))
    return METHODS[name]


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


def load_method(config: MethodConfig) -> Method:
    """Import the class of `config.name` and make it. Imports torch."""
    module, _, name = method_info(config.name).path.partition(":")
    return getattr(importlib.import_module(module), name)(config)
