"""The settings on the page: controls of the next run and the next attack, filled from a config and read back.

The screens place the controls; the draft knows all of them, so that a preset or a reopened run can fill them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component
from gradio.events import Dependency

from app import text
from app.arguments import texts_of
from app.components import method_label
from app.controls import Form
from app.services import (
    METHODS,
    PRESETS,
    YOUR_MODEL,
    AttackConfig,
    Config,
    ConfigError,
    Defence,
    LabConfig,
    ModelConfig,
    Permissions,
    data_of,
    methods_of,
    parse_config,
    parse_defence,
    settings_of,
    stages_of,
    title_of,
)

SANDBOX = ModelConfig().name
FOR_LAUNCHERS = ("shard",)
"""Settings that need several processes, which the page does not start."""
MODEL_MAIN = ("name", "quantization", "device")
ALIGN_MAIN = tuple(f"alignment.optimisation.{name}" for name in ("steps", "learning_rate", "batch_size"))
ATTACK_MAIN = (
    "harmful_ratio",
    "num_samples",
    "task",
    "optimisation.steps",
    "optimisation.learning_rate",
    "adapter_mode",
)
TWO_IN_SIGHT = 2
"""Visible settings per method; its other settings are advanced."""


class Draft:
    """Every setting that a visitor may change before a start. `base` is the config they began with.

    Args:
        config: the first config on the page.
        permissions: whether visitors may name a model, and switch its own code on. If not, runs keep the model
            settings of the preset or run they begin with.
    """

    def __init__(self, config: LabConfig, permissions: Permissions | None = None) -> None:
        permissions = permissions or Permissions()
        own_models = permissions.own_models
        hidden = FOR_LAUNCHERS if permissions.remote_code else (*FOR_LAUNCHERS, "trust_remote_code")
        self._begin = config
        self._own_models = own_models
        names = list(METHODS)
        self._lab = Form(config, "run", main=ALIGN_MAIN, leave_out=("defences", "attack.", "model."))
        self._methods = {name: Form(settings_of(config, name), name) for name in names}
        tasks = [(task.title, name) for name, task in data_of(config).tasks.items()]
        self.model = Form(config.model, "model", main=MODEL_MAIN, leave_out=hidden) if own_models else None
        self.model_group = gr.Group(visible=is_own(config.model), render=False)
        self.preset = gr.Radio(
            choices=[
                (item.title, name) for name, item in PRESETS.items() if own_models or not is_own(item.config.model)
            ],
            value=preset_of(config),
            label=text.PRESET,
            elem_id="preset",
            render=False,
        )
        self.attack = Form(config.attack, "attack", main=ATTACK_MAIN, choices={"task": tasks})
        self.base = gr.State(config.model_dump_json())
        self.chosen = gr.Dropdown(
            choices=[(title_of(defence), defence.name) for defence in _suggested()],
            value=_names(config),
            label=text.DEFENCES,
            info=text.DEFENCES_INFO,
            multiselect=True,
            allow_custom_value=True,
            interactive=True,
            elem_id="defences",
            render=False,
        )

    # Placing

    def place_model(self) -> None:
        """The presets, and the settings of "your model" if they are allowed; visible only when it is chosen."""
        self.preset.render()
        self.model_group.render()
        if self.model is None:
            return
        with self.model_group:
            for path in self.model.main:
                self.model.place(path)
            with gr.Accordion(text.ADVANCED, open=False, elem_id="model-advanced"):
                for path in self.model.advanced:
                    self.model.place(path)

    def place_align(self) -> list[tuple[str, gr.Group]]:
        """Defences and the main settings; all others are folded. Returns each method's groups of settings."""
        groups: list[tuple[str, gr.Group]] = []

        def place_method(name: str, paths: Sequence[str]) -> None:
            if not paths:
                return
            with gr.Group(visible=name in methods_in(_names(self._begin))) as group:
                method_label(name)
                for path in paths:
                    self._methods[name].place(path)
            groups.append((name, group))

        self.chosen.render()
        with gr.Group():
            for path in self._lab.main:
                self._lab.place(path)
        for name, form in self._methods.items():
            place_method(name, form.main[:TWO_IN_SIGHT])
        with gr.Accordion(text.ADVANCED, open=False, elem_id="align-advanced"):
            for name, form in self._methods.items():
                place_method(name, [*form.main[TWO_IN_SIGHT:], *form.advanced])
            with gr.Group():
                for path in self._lab.advanced:
                    self._lab.place(path)
        return groups

    def place_attack(self) -> None:
        """The attack's main settings; all others are folded."""
        with gr.Group():
            for path in self.attack.main:
                self.attack.place(path)
        with gr.Accordion(text.ADVANCED, open=False, elem_id="attack-advanced"), gr.Group():
            for path in self.attack.advanced:
                self.attack.place(path)

    # Filling

    @property
    def outputs(self) -> list[Component | BlockContext]:
        """The outputs of `fill`."""
        return [self.preset, self.model_group, self.base, self.chosen, *self._controls()]

    def fill(self, config: LabConfig) -> list[Any]:
        """Updates that make the page show `config`."""
        shown = self._own_models and is_own(config.model)
        values = self._lab.values(config)
        for name, form in self._methods.items():
            values += form.values(settings_of(config, name))
        values += self.attack.values(config.attack)
        if self.model is not None:
            unnamed = config.model.name == YOUR_MODEL
            values += self.model.values(config.model.model_copy(update={"name": ""}) if unnamed else config.model)
        return [preset_of(config), gr.Group(visible=shown), config.model_dump_json(), _names(config), *values]

    # Reading

    @property
    def inputs(self) -> list[Component | BlockContext]:
        """The inputs of `read`."""
        return [self.base, self.chosen, *self._controls()]

    def read(self, base: str, chosen: Sequence[str], *values: Any) -> LabConfig:
        """The config on the page.

        Raises:
            ConfigError: a setting is missing or not allowed, a defence is unknown, or no defence is chosen.
        """
        chosen = texts_of(chosen, text.DEFENCES)
        left = iter(values)
        config = self._lab.parse(LabConfig.model_validate_json(base), _take(left, self._lab))
        used, settings = methods_in(chosen), {}
        for name, form in self._methods.items():
            given = _take(left, form)
            if name in used:
                settings[name] = form.parse(settings_of(config, name), given)
        config = _with_chosen(config, chosen, settings)
        attack = self.attack.parse(config.attack, _take(left, self.attack))
        model = self.read_model(base, *left)
        return config.model_copy(update={"attack": attack, "model": model})

    def read_attack(self, base: str, *values: Any) -> AttackConfig:
        """The attack on the page, from `base` and the values of `attack.components`. Raises `ConfigError`."""
        return self.attack.parse(LabConfig.model_validate_json(base).attack, values)

    @property
    def model_triggers(self) -> list[Callable[..., Dependency]]:
        """Events after which the model's settings have changed: choices at once, typed text when the field is left."""
        if self.model is None:
            return []
        name, *others = (self.model.controls[path] for path in (*self.model.main, *self.model.advanced))
        assert isinstance(name, gr.Textbox)
        return [name.blur, name.submit, *(control.input for control in others)]  # pyright: ignore[reportAttributeAccessIssue] - every control has `input`

    @property
    def model_inputs(self) -> list[Component | BlockContext]:
        """The inputs of `read_model`."""
        return [self.base, *(self.model.components if self.model else ())]

    def read_model(self, base: str, *values: Any) -> ModelConfig:
        """The model on the page; its name is `YOUR_MODEL` until one is typed. Raises `ConfigError`."""
        model = LabConfig.model_validate_json(base).model
        if self.model is None:
            return model
        given = dict(zip(self.model.controls, values, strict=True))
        name = given["name"] or ""
        given["name"] = (name.strip() or YOUR_MODEL) if isinstance(name, str) else name
        return self.model.parse(model, list(given.values()))

    def _controls(self) -> list[Component | BlockContext]:
        forms = [self._lab, *self._methods.values(), self.attack, *([self.model] if self.model else [])]
        return [component for form in forms for component in form.components]


def is_own(model: ModelConfig) -> bool:
    """True for a model of the visitor's own, named or not yet."""
    return model.name != SANDBOX


def preset_of(config: LabConfig) -> str | None:
    """The preset equal to `config`; for a visitor's own model the preset it began with, whatever was changed."""
    if is_own(config.model):
        return YOUR_MODEL
    return next((name for name, preset in PRESETS.items() if preset.config == config), None)


def methods_in(chosen: object) -> set[str]:
    """Methods that defences name; empty for a defence with its own name, and for an unknown defence.

    Raises:
        ConfigError: `chosen` is not a list of names.
    """
    found: set[str] = set()
    for spec in texts_of(chosen, text.DEFENCES):
        try:
            found |= set(stages_of(spec).values())
        except ConfigError:  # a defence with its own name, or a mistake: `read` tells which
            continue
    return found


def _with_chosen(config: LabConfig, chosen: Sequence[str], settings: Mapping[str, Config]) -> LabConfig:
    """`config` with the defences chosen: methods as set on the page; a defence that it cannot write stays as it is."""
    kept = {defence.name: defence for defence in config.defences if _short_of(config, defence) is None}
    found = [kept.get(spec) or parse_defence(spec, lambda name: settings[name]) for spec in chosen]
    defences = [defence.model_dump(mode="json") for defence in found]
    return parse_config(LabConfig, {**config.model_dump(mode="json"), "defences": defences})


def _short_of(config: LabConfig, defence: Defence) -> str | None:
    """How the page writes a defence of `config`, whose settings it shows; None if that would be another defence."""
    short = defence.short
    return short if short and parse_defence(short, lambda name: settings_of(config, name)) == defence else None


def _suggested() -> list[Defence]:
    """The offered defences: every alignment method alone, and with each repair."""
    repairs = [info.name for info in methods_of("repair")][1:]
    alone = [info.name for info in methods_of("alignment")]
    specs = [*alone, *(f"{name}+{repair}" for repair in repairs for name in alone)]
    return [Defence.model_validate(spec) for spec in specs]


def _names(config: LabConfig) -> list[str]:
    """The defences of `config` as they are chosen on the page."""
    return [_short_of(config, defence) or defence.name for defence in config.defences]


def _take(values: Iterator[Any], form: Form) -> list[Any]:
    return [next(values) for _ in form.components]
