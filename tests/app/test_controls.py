"""Controls come from the fields and give back what they show."""

from typing import Any

import gradio as gr
import pytest
from written_runs import small_config

from app.controls import Form, fields_of, make_control
from app.draft import Draft, methods_in
from app.services import METHODS, PRESETS, YOUR_MODEL, AttackConfig, ConfigError, Defence, LabConfig
from tvaccine_core.config import ModelConfig, SFTConfig, TVaccineConfig, VaccineConfig, parse_config


def test_every_field_of_every_config_gets_a_control_that_shows_its_value() -> None:
    for config in (LabConfig(), AttackConfig(), *(info.config() for info in METHODS.values())):
        leave_out = ("defences",) if isinstance(config, LabConfig) else ()
        form = Form(config, "x", leave_out=leave_out)
        assert set(form.controls) == set(fields_of(type(config))) - set(leave_out)
        for control, value in zip(form.components, form.values(config), strict=True):
            assert control.value == value, control.label
        assert form.parse(config, form.values(config)) == config


def test_discriminators_get_no_control() -> None:
    assert "name" not in fields_of(TVaccineConfig)
    assert "name" in fields_of(ModelConfig)


def test_range_step_and_help_are_the_field_s_own() -> None:
    leaf = fields_of(AttackConfig)["harmful_ratio"]
    slider = make_control("harmful_ratio", leaf, 0.1, None, "id")
    assert isinstance(slider, gr.Slider)
    assert (slider.minimum, slider.maximum, slider.step) == (0, 1, 0.01)
    assert slider.info == leaf.field.description
    rate = make_control(
        "a.learning_rate", fields_of(LabConfig)["alignment.optimisation.learning_rate"], 1e-3, None, "id"
    )
    assert isinstance(rate, gr.Number)
    assert (rate.maximum, rate.step) == (1, 1e-4)


def test_literals_become_choices_and_whole_numbers_stay_whole() -> None:
    fields = fields_of(TVaccineConfig)
    choice = make_control("layer_choice", fields["layer_choice"], "sampled", None, "id")
    assert isinstance(choice, gr.Dropdown)
    assert [value for _, value in choice.choices] == ["sampled", "top_k", "uniform", "first", "last", "all"]
    layers = make_control("num_layers", fields["num_layers"], 4, None, "id")
    assert isinstance(layers, gr.Number)
    assert layers.precision == 0


def test_advanced_fields_are_folded_away() -> None:
    form = Form(TVaccineConfig(), "x")
    assert "rho" in form.main
    assert "freezing" in form.advanced
    assert not set(form.main) & set(form.advanced)


@pytest.mark.parametrize(
    ("value", "name"), [(None, "harmful_ratio"), (1.5, "harmful_ratio"), ("much", "harmful_ratio")]
)
def test_a_wrong_value_is_named_with_what_was_given(value: object, name: str) -> None:
    form = Form(AttackConfig(), "x")
    values = form.values(AttackConfig())
    values[list(form.controls).index(name)] = value
    with pytest.raises(ConfigError, match=name) as caught:
        form.parse(AttackConfig(), values)
    assert repr(value) in str(caught.value)


@pytest.fixture
def draft() -> Draft:
    with gr.Blocks():
        return Draft(LabConfig())


def filled(draft: Draft, config: LabConfig) -> list[Any]:
    """What `draft.read` is given when the page shows `config`."""
    return draft.fill(config)[len(draft.outputs) - len(draft.inputs) :]


@pytest.mark.parametrize("config", [*(preset.config for preset in PRESETS.values()), small_config()])
def test_a_config_put_on_the_page_is_read_back_unchanged(draft: Draft, config: LabConfig) -> None:
    assert draft.read(*filled(draft, config)) == config


def test_settings_of_a_method_survive_that_it_is_not_chosen(draft: Draft) -> None:
    shown = filled(draft, small_config(methods=[VaccineConfig(rho=2.5)]))
    assert draft.read(*shown).defences == (Defence(alignment=VaccineConfig(rho=2.5)),)
    base, _, *values = shown
    both = draft.read(base, ["sft", "vaccine", "tvaccine"], *values)
    methods = [defence.alignment for defence in both.defences]
    assert methods == [SFTConfig(), VaccineConfig(rho=2.5), TVaccineConfig()]


def test_a_method_that_is_added_is_perturbed_as_often_as_the_others(draft: Draft) -> None:
    base, _, *values = filled(draft, small_config(methods=[SFTConfig(), TVaccineConfig(perturb_every=3)]))
    read = draft.read(base, ["vaccine", "tvaccine"], *values)
    assert [defence.alignment for defence in read.defences] == [
        VaccineConfig(perturb_every=3),
        TVaccineConfig(perturb_every=3),
    ]


def test_defences_are_written_in_short_and_one_with_a_name_of_its_own_is_kept_as_it_is(draft: Draft) -> None:
    strong = Defence(name="strong", alignment=TVaccineConfig(rho=5.0))
    config = small_config().model_copy(update={"defences": (Defence(), strong)})
    base, chosen, *values = filled(draft, config)
    assert chosen == ["sft", "strong"]
    read = draft.read(base, ["strong", "tvaccine+identity", "sft"], *values)
    assert [defence.name for defence in read.defences] == ["strong", "tvaccine+identity", "sft"]
    assert read.defences[0] == strong
    assert methods_in(["strong", "tvaccine + identity", "nope"]) == {"tvaccine", "identity"}
    for wrong in (["sft", "nope"], ["sft", "sft+"], ["sft", "all"]):
        with pytest.raises(ConfigError):
            draft.read(base, wrong, *values)


def test_a_second_setting_of_a_method_is_written_behind_it_and_follows_its_other_settings(draft: Draft) -> None:
    base, _, *values = filled(draft, small_config(methods=[TVaccineConfig(num_layers=2)]))
    read = draft.read(base, ["tvaccine", "tvaccine rho=3", "tvaccine rho=3 + identity"], *values)
    assert [defence.name for defence in read.defences] == ["tvaccine", "tvaccine-rho-3", "tvaccine-rho-3+identity"]
    assert [defence.alignment for defence in read.defences] == [
        TVaccineConfig(num_layers=2),
        TVaccineConfig(num_layers=2, rho=3),
        TVaccineConfig(num_layers=2, rho=3),
    ]
    base, chosen, *values = filled(draft, read)
    assert chosen == ["tvaccine", "tvaccine rho=3", "tvaccine rho=3+identity"]
    assert draft.read(base, chosen, *values) == read
    assert methods_in(chosen) == {"tvaccine", "identity"}
    values[values.index(2)] = 6  # layers drawn at a time
    assert {
        getattr(defence.alignment, "num_layers", None) for defence in draft.read(base, chosen, *values).defences
    } == {6}


@pytest.mark.parametrize(
    "defences",
    [
        [{"name": "strong", "alignment": {"name": "tvaccine", "rho": 5}}, "tvaccine"],
        ["tvaccine rho=5", "tvaccine"],
        ["tvaccine", {"alignment": {"name": "tvaccine", "rho": 2}, "repair": {"name": "identity"}}],
        ["tvaccine", {"name": "tvaccine-rho-3", "alignment": {"name": "tvaccine", "rho": 3, "num_layers": 1}}],
        ["tvaccine rho=5"],
    ],
)
def test_several_settings_of_one_method_are_read_back_unchanged(draft: Draft, defences: list[object]) -> None:
    config = parse_config(LabConfig, {"defences": defences})
    assert draft.read(*filled(draft, config)) == config


def test_no_defence_is_an_error(draft: Draft) -> None:
    base, _, *values = filled(draft, LabConfig())
    with pytest.raises(ConfigError, match="defences"):
        draft.read(base, [], *values)


def test_what_no_control_shows_is_kept(draft: Draft) -> None:
    config = LabConfig(model=ModelConfig(name="elsewhere", quantization="nf4"))
    assert draft.read(*filled(draft, config)).model == config.model


def test_the_preset_shown_is_the_one_that_the_config_is(draft: Draft) -> None:
    def shown(config: LabConfig) -> object:
        return dict(zip(draft.outputs, draft.fill(config), strict=True))[draft.preset]

    check = PRESETS["sandbox-check"].config
    assert shown(check) == "sandbox-check"
    assert shown(check.model_copy(update={"seed": 7})) is None
    assert shown(check.model_copy(update={"model": ModelConfig(name="owner/model")})) == YOUR_MODEL
