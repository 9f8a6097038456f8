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
    """Streams of examples that must be there beside the one it trains on, see `training.fit`; e.g. `harmful`."""
    extra_passes: int = 0
    """Forward and backward passes of its dearest step beyond SFT's one."""
    perturbs: bool = False
    """Descends under a perturbation of hidden states, whose norm it reports."""
    scoring_rows: int = 0
    """Harmful examples in one scoring of the layers; 0 where it scores none."""
    score_every: int = 0
    """Steps from one scoring to the next; 0 where it scores none."""
    draw_every: int = 0
    """Steps from one draw of layers to the next; 0 where it draws none."""


@dataclass(frozen=True)
class WorstCase:
    """The settings under which a method holds the most memory, and how that grows with the model's depth."""

    settings: Config
    assumption: str = ""
    """What the memory plan says it assumes by them; empty if chance has no part in it."""
    drawn: int = 0
    """Layers that train apart from the others; 0 where all are alike."""
    with_drawn: Callable[[int], Config] | None = None
    """The method's settings in a shallower model of which so many layers are drawn; None where all are alike."""
    grows_evenly: bool = True
    """False where it matters how deep the layers lie that train."""


def nothing_special(settings: Config) -> Capabilities:
    """Of a method that takes SFT's step."""
    return Capabilities()


def as_it_is(settings: Config) -> Config:
    """The settings themselves."""
    return settings


def fits_any_model(settings: Config, facts: ModelFacts) -> None:
    """Of a method that works on every model."""


def vaccine(settings: VaccineConfig) -> Capabilities:
    """Of Vaccine."""
    return Capabilities(extra_passes=1, perturbs=True)


def tvaccine(settings: TVaccineConfig) -> Capabilities:
    """Of T-Vaccine, whose layers are scored on harmful data for some choices only."""
    common: dict[str, Any] = {"extra_passes": 1, "perturbs": True, "draw_every": settings.resample_every}
    if settings.layer_choice not in ("sampled", "top_k"):
        return Capabilities(**common)
    return Capabilities(
        needs=("harmful",), scoring_rows=settings.probe_batch_size, score_every=settings.rescore_every, **common
    )


def tvaccine_worst_case(settings: TVaccineConfig) -> WorstCase:
    """Layers that chance would choose are taken from the bottom up: then no layer can be skipped."""
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
