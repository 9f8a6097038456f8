"""What an entry of METHODS says of a method is what the method does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import build, make_batch, make_method

from tvaccine_core.config import PlainConfig, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError
from tvaccine_core.methods import METHODS, capabilities_of, load_method, worst_case_of
from tvaccine_core.methods.base import Batch, MethodContext
from tvaccine_core.models.files import ModelFacts
from tvaccine_core.records import LayerDrawRecord, LayerScoreRecord

CHOICES = ("sampled", "top_k", "uniform", "first", "last", "all")
DRAWS: dict[str, Any] = {"num_layers": 2, "resample_every": 2, "rescore_every": 3, "probe_batch_size": 5}
CONFIGS: dict[str, Any] = {
    "sft": SFTConfig(),
    "plain": PlainConfig(),
    "vaccine": VaccineConfig(),
    **{f"tvaccine {choice}": TVaccineConfig(layer_choice=choice, **DRAWS) for choice in CHOICES},
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def test_every_method_is_looked_at() -> None:
    assert {config.name for config in CONFIGS.values()} == {name for name, info in METHODS.items() if info.path}


@every_config
def test_streams_that_are_needed_are_missed_and_no_others(config: Any) -> None:
    method = load_method(config)
    context = MethodContext(torch.Generator(), lambda value: value, lambda event: None)
    if capabilities_of(config).needs:
        assert capabilities_of(config).needs == ("harmful",)
        with pytest.raises(ConfigError, match="harmful data, and there is none"):
            method.setup(build(), context)
    else:
        method.setup(build(), context)


@every_config
def test_its_passes_perturbation_scorings_and_draws_are_as_said(config: Any) -> None:
    says = capabilities_of(config)
    model = build()
    method, events = make_method(config, model)
    asked: list[int] = []

    def draw(count: int, generator: torch.Generator | None) -> Batch:
        asked.append(count)
        return make_batch(9)

    method.context = replace(method.context, streams={"harmful": draw})
    heads: list[int] = []
    method.passes.anatomy.head.register_forward_hook(lambda *_: heads.append(1))
    metrics: dict[str, Any] = {}
    for step in range(7):
        metrics = method.training_step(model, make_batch(), step)
    assert ("perturbation_norm" in metrics) == says.perturbs
    scored = [event.step for event in events if isinstance(event, LayerScoreRecord)]
    drawn = [event.step for event in events if isinstance(event, LayerDrawRecord)]
    assert scored == list(range(0, 7, says.score_every or 7))[: None if says.score_every else 0]
    assert drawn == list(range(0, 7, says.draw_every or 7))[: None if says.draw_every else 0]
    assert asked == [says.scoring_rows] * len(scored)
    assert len(heads) == 7 * (1 + says.extra_passes) + len(scored)
    assert {event.kind for event in events} <= set(METHODS[config.name].records)


@every_config
def test_the_worst_case_is_left_to_no_chance_and_needs_nothing_else(config: Any) -> None:
    case = worst_case_of(config)
    says = capabilities_of(case.settings)
    assert not says.needs
    chance = getattr(config, "layer_choice", "") in ("sampled", "top_k", "uniform")
    assert bool(case.assumption) == (case.settings != config) == chance
    assert case.grows_evenly == (getattr(config, "layer_choice", "") != "last")
    if case.drawn:
        assert case.with_drawn is not None
        method, _ = make_method(case.settings, build())
        method.training_step(method.passes.anatomy.causal, make_batch(), 0)
        assert len(method.layers) == case.drawn  # pyright: ignore[reportAttributeAccessIssue]
        assert worst_case_of(case.with_drawn(1)).drawn == 1


@every_config
def test_typical_settings_differ_by_when_they_draw_alone(config: Any) -> None:
    typical = METHODS[config.name].typical(config)
    draws = bool(capabilities_of(config).draw_every)
    assert capabilities_of(typical).draw_every == int(draws)
    assert typical == (config.model_copy(update={"resample_every": 1}) if draws else config)


def test_what_does_not_fit_the_model_is_refused_before_it_is_loaded() -> None:
    check = METHODS["tvaccine"].check
    few = ModelFacts(folder=None, num_layers=3)
    check(TVaccineConfig(num_layers=3), few)
    check(TVaccineConfig(num_layers=9, layer_choice="all"), few)
    check(TVaccineConfig(num_layers=9), ModelFacts(folder=None))
    with pytest.raises(ConfigError, match="num_layers is 4, but the model has 3 layers") as caught:
        check(TVaccineConfig(num_layers=4), few)
    assert "from 1 to 3" in caught.value.remedy
