"""T-Vaccine's choices: which layers, when, which of their parameters; and what it refuses."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import build, make_batch, make_method, plain_two_passes, take_gradients, worst_error

from tvaccine_core.config import TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError, DataError, TrainingError
from tvaccine_core.methods.alignment import tvaccine
from tvaccine_core.methods.alignment.tvaccine import TVaccine
from tvaccine_core.methods.base import MethodContext
from tvaccine_core.records import Event, LayerDrawRecord, LayerScoreRecord


def set_up(model: Any, **settings: Any) -> tuple[Any, list[Event]]:
    return make_method(TVaccineConfig(**{"num_layers": 2, **settings}), model)


def test_scores_are_the_gradient_norms_of_the_harmful_loss() -> None:
    model = build()
    method, _ = set_up(model)
    scores, loss = method.score_layers(make_batch(4))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    _, clean = plain_two_passes(model, make_batch(4), range(5), 1.0, trained)
    torch.testing.assert_close(scores, torch.stack([clean[layer].norm() for layer in range(5)]), rtol=1e-5, atol=0)
    assert loss.dim() == 0
    assert not take_gradients(model)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_scores_in_pieces_are_those_of_all_rows_at_once(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvaccine, "SCORED_AT_ONCE", num_rows)
    model = build()
    method, _ = set_up(model)
    lean = TVaccine(method.config)
    lean.setup(model, replace(method.context, activation_memory="lowest"))
    batch = make_batch()  # three rows: as pairs, the last piece is smaller
    labels = batch.labels.clone()
    labels[1] = -100  # alone, a piece without a label
    batch = replace(batch, labels=labels)
    runs: list[int] = []
    lean.passes.anatomy.embedding.register_forward_pre_hook(lambda *_: runs.append(1))
    in_pieces = lean.score_layers(batch)
    assert len(runs) == 2
    for found, whole in zip(in_pieces, method.score_layers(batch), strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=0)
    runs.clear()
    lean.score_layers(replace(batch, share=0.5))
    assert len(runs) == 1, "processes that divide a batch make one pass each"
    with pytest.raises(DataError, match="no labelled token"):
        lean.score_layers(replace(batch, labels=torch.full_like(labels, -100)))


def test_scores_and_draws_come_when_they_are_due() -> None:
    model = build(num_layers=3)
    method, events = set_up(model, num_layers=1, resample_every=2, rescore_every=3)
    for step in range(7):
        method.training_step(model, make_batch(), step)
    assert [event.step for event in events if isinstance(event, LayerScoreRecord)] == [0, 3, 6]
    assert [event.step for event in events if isinstance(event, LayerDrawRecord)] == [0, 2, 4, 6]
    scored = next(event for event in events if isinstance(event, LayerScoreRecord))
    assert sum(scored.layer_probabilities) == pytest.approx(1)
    total = sum(scored.layer_scores)
    assert scored.layer_probabilities == pytest.approx([score / total for score in scored.layer_scores])


def test_layers_are_drawn_by_their_scores_without_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """First draws follow the probabilities: with one layer a draw, frequency = probability (chi-square, 99.9 %)."""
    model = build(num_layers=3)
    method, events = set_up(model, num_layers=1, resample_every=1, rescore_every=10_000)
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    monkeypatch.setattr(TVaccine, "score_layers", lambda self, batch: (probabilities * 5, torch.tensor(1.0)))
    monkeypatch.setattr(TVaccine, "descend", lambda self, *args, **kwargs: {})
    for step in range(2000):
        method.training_step(model, make_batch(), step)
    drawn = Counter(event.layers for event in events if isinstance(event, LayerDrawRecord))
    expected = 2000 * probabilities
    observed = torch.tensor([drawn[(layer,)] for layer in range(3)])
    assert float(((observed - expected) ** 2 / expected).sum()) < 13.8

    method, events = set_up(model, num_layers=2, resample_every=1)
    for step in range(50):
        method.training_step(model, make_batch(), step)
    assert all(len(set(event.layers)) == 2 for event in events if isinstance(event, LayerDrawRecord))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("top_k", (1, 4)), ("first", (0, 1)), ("last", (3, 4)), ("all", (0, 1, 2, 3, 4))],
)
def test_fixed_choices(choice: str, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    scores = torch.tensor([1.0, 5.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(TVaccine, "score_layers", lambda self, batch: (scores, torch.tensor(1.0)))
    method, events = set_up(model, layer_choice=choice)
    method.training_step(model, make_batch(), 0)
    assert method.layers == expected
    assert sum(isinstance(event, LayerScoreRecord) for event in events) == (choice == "top_k")


def test_uniform_choice_needs_no_harmful_data_and_visits_every_layer() -> None:
    model = build()
    method = TVaccine(TVaccineConfig(num_layers=2, layer_choice="uniform", resample_every=1))
    events: list[Event] = []
    method.setup(model, MethodContext(torch.Generator().manual_seed(0), lambda value: value, events.append))
    for step in range(12):
        method.training_step(model, make_batch(), step)
    drawn = [event.layers for event in events if isinstance(event, LayerDrawRecord)]
    assert {layer for layers in drawn for layer in layers} == set(range(5))
    assert len(drawn) == len(events) == 12


@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_layers_with_the_released_freezing_is_vaccine(checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing, dropout=0.3)
    vaccine, _ = make_method(VaccineConfig(rho=1.5), model)
    expected_metrics = vaccine.training_step(model, make_batch(), 0)
    expected = take_gradients(model)
    method, _ = set_up(model, layer_choice="all", rho=1.5)
    metrics = method.training_step(model, make_batch(), 0)
    ours = take_gradients(model)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert metrics == expected_metrics


@pytest.mark.parametrize(("num_layers", "lowest"), [(26, 4), (27, 3)])
def test_above_26_layers_the_gradient_reaches_one_layer_further(num_layers: int, lowest: int) -> None:
    model = build(num_layers=num_layers, hidden_size=8, head_dim=2, intermediate_size=8)
    method, _ = set_up(model)
    method.set_layers([9, 4])
    method.training_step(model, make_batch(), 0)
    names = take_gradients(model)
    reached = {int(re.findall(r"layers\.(\d+)", name)[0]) for name in names if "mlp" in name}
    attention = {int(re.findall(r"layers\.(\d+)", name)[0]) for name in names if "attn" in name}
    assert reached == set(range(lowest, num_layers))
    assert attention == {4, 9}

    method, _ = set_up(model, freezing="layer")
    method.set_layers([9, 4])
    method.training_step(model, make_batch(), 0)
    assert {int(re.findall(r"layers\.(\d+)", name)[0]) for name in take_gradients(model)} == {4, 9}


def test_forced_layers_stay_until_released() -> None:
    model = build()
    method, events = set_up(model, resample_every=1, rescore_every=1)
    method.set_layers([3, 1])
    for step in range(3):
        method.training_step(model, make_batch(), step)
    assert method.layers == (1, 3)
    assert not events
    method.set_layers(None)
    method.training_step(model, make_batch(), 3)
    assert {type(event) for event in events} == {LayerScoreRecord, LayerDrawRecord}


def test_full_fine_tuning_with_tied_embeddings_equals_the_plain_step() -> None:
    model = build(lora=False, tie_word_embeddings=True)
    for layers, freezing in (((0, 2), "attention"), ((2, 3), "attention"), ((2, 3), "layer")):
        method, _ = set_up(model, freezing=freezing, rho=2.0)
        method.set_layers(layers)
        method.training_step(model, make_batch(), 0)
        ours = take_gradients(model)
        embedding = "model.embed_tokens.weight"
        assert (embedding in ours) == (freezing == "attention"), "tied to the head, which the gradient reaches"
        trained = {name: parameter for name, parameter in model.named_parameters() if name in ours}
        expected, _ = plain_two_passes(model, make_batch(), layers, 2.0, trained)
        if layers[0]:  # through the layers nothing reaches the embedding, through the head it does
            ours.pop(embedding, None), expected.pop(embedding, None)
        assert worst_error(ours, expected) < 1e-5


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.0] * 5, "not all zero"),
        ([1.0, float("nan"), 1.0, 1.0, 1.0], "finite"),
        ([1.0, float("inf"), 1.0, 1.0, 1.0], "finite"),
        ([1.0, 0.0, 0.0, 0.0, 0.0], "Only 1 layers"),
    ],
)
def test_unusable_scores_stop_the_run(scores: list[float], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    method, events = set_up(model)
    monkeypatch.setattr(TVaccine, "score_layers", lambda self, batch: (torch.tensor(scores), torch.tensor(1.0)))
    with pytest.raises(TrainingError, match=message) as caught:
        method.training_step(model, make_batch(), 0)
    assert caught.value.remedy
    assert not [event for event in events if isinstance(event, LayerDrawRecord)]


def test_more_layers_than_the_model_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="6, but the model has 5"):
        set_up(build(), num_layers=6)
    set_up(build(), num_layers=6, layer_choice="all")


def test_scoring_without_harmful_data_is_refused() -> None:
    context = MethodContext(torch.Generator(), lambda value: value, lambda event: None)
    with pytest.raises(ConfigError, match="harmful"):
        TVaccine(TVaccineConfig(num_layers=2)).setup(build(), context)


@pytest.mark.parametrize("layers", [[], [5], [-1, 2]])
def test_layers_that_do_not_exist_cannot_be_forced(layers: list[int]) -> None:
    method, _ = set_up(build())
    with pytest.raises(ConfigError, match="not layers of the model"):
        method.set_layers(layers)


def test_drawn_layers_without_an_adapter_are_refused() -> None:
    method, _ = set_up(build(targets=r".*layers\.[01]\..*q_proj"))
    with pytest.raises(ConfigError, match="Nothing trains"):
        method.set_layers([3, 4])
