"""What the rest of the program must know of a method with its settings. Torch-free.

An entry of `METHODS` offers these as functions of the settings, so that nothing outside `methods` asks which method
it is: page, orders, memory plan and time estimate ask what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvaccine_core.config import Config, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError
from tvaccine_core.models.files import ModelFacts


@dataclass(frozen=True)
class Capabilities:
    """What a method does under given settings."""

    needs: tuple[str, ...] = ()
    """Streams of examples that it needs beside the stream it trains on, e.g. `harmful`; see `training.fit`."""
    extra_passes: int = 0
    """Forward and backward passes of its most expensive step, beyond the one pair of SFT."""
    perturbs: bool = False
    """Whether it trains under a perturbation of hidden states and reports the perturbation's norm."""
    scoring_rows: int = 0
    """Harmful examples per scoring of the layers; 0 without scoring."""
    score_every: int = 0
    """Steps from one scoring to the next; 0 without scoring."""
    draw_every: int = 0
    """Steps from one draw of layers to the next; 0 without drawing."""


@dataclass(frozen=True)
class WorstCase:
    """The settings under which a method needs the most memory, and how this memory grows with the model's depth."""

    settings: Config
    assumption: str = ""
    """The assumption that the memory plan names; empty if nothing depends on chance."""
    drawn: int = 0
    """Number of drawn layers; 0 where all layers are alike."""
    with_drawn: Callable[[int], Config] | None = None
    """The method's settings for a shallower model with a given number of drawn layers; None where all are alike."""
    grows_evenly: bool = True
    """False if the depth at which the trained layers lie matters."""


def nothing_special(settings: Config) -> Capabilities:
    """Capabilities of a method that takes SFT's step."""
    return Capabilities()


def as_it_is(settings: Config) -> Config:
    """The settings themselves."""
    return settings


def fits_any_model(settings: Config, facts: ModelFacts) -> None:
    """Check of a method that works on every model: raises nothing."""


def vaccine(settings: VaccineConfig) -> Capabilities:
    """Of Vaccine."""
    return Capabilities(extra_passes=1, perturbs=True)


def tvaccine(settings: TVaccineConfig) -> Capabilities:
    """Capabilities of T-Vaccine, which scores layers on harmful data for some values of `layer_choice` only."""
    common: dict[str, Any] = {"extra_passes": 1, "perturbs": True, "draw_every": settings.resample_every}
    if settings.layer_choice not in ("sampled", "top_k"):
        return Capabilities(**common)
    return Capabilities(
        needs=("harmful",), scoring_rows=settings.probe_batch_size, score_every=settings.rescore_every, **common
    )


def tvaccine_worst_case(settings: TVaccineConfig) -> WorstCase:
    """Layers that chance would draw are taken from the bottom up: then no layer can be skipped."""
    if settings.layer_choice == "all":
        return WorstCase(settings)
    chance = settings.layer_choice in ("sampled", "top_k", "uniform")
    return WorstCase(
        settings.model_copy(update={"layer_choice": "first"}) if chance else settings,
        assumption="layer 0 is among the drawn layers, the worst draw" if chance else "",
        drawn=settings.num_layers,
        with_drawn=lambda count: settings.model_copy(update={"num_layers": count}),
        grows_evenly=settings.layer_choice != "last",
    )


def tvaccine_typical(settings: TVaccineConfig) -> TVaccineConfig:
    """Layers are drawn anew at every step, so that the median of a few steps is that of a typical draw."""
    return settings.model_copy(update={"resample_every": 1})


def tvaccine_check(settings: TVaccineConfig, facts: ModelFacts) -> None:
    """Raise `ConfigError` if more layers are to be drawn than the model is known to have."""
    drawn = 0 if settings.layer_choice == "all" else settings.num_layers
    if facts.num_layers is not None and drawn > facts.num_layers:
        raise ConfigError(
            f"num_layers is {drawn}, but the model has {facts.num_layers} layers.",
            remedy=f"Choose num_layers from 1 to {facts.num_layers}, on the Align step.",
        )
