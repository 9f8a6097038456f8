"""The settings on the page: controls of the next run and of the next attack, filled from a config and read back.

The screens place the controls; the draft knows all of them, so that a preset or a reopened run fills every one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext
from gradio.components import Component

from app import text
from app.components import method_label
from app.controls import Form
from app.services import METHODS, AttackConfig, LabConfig, data_of, default_method, replace_methods

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
"""Settings of a method that are shown at once; its others are advanced."""


class Draft:
    """Every setting a visitor may change before a start. `base` is the config they began with."""

    def __init__(self, config: LabConfig) -> None:
        self._begin = config
        names = [name for name, info in METHODS.items() if info.stage == "alignment_stage"]
        self._lab = Form(config, "run", main=ALIGN_MAIN, leave_out=("alignment.methods", "attack.", "model."))
        self._methods = {name: Form(_method(config, name), name) for name in names}
        tasks = [(task.title, name) for name, task in data_of(config).tasks.items()]
        self.attack = Form(config.attack, "attack", main=ATTACK_MAIN, choices={"task": tasks})
        self.base = gr.State(config.model_dump_json())
        self.chosen = gr.CheckboxGroup(
            choices=[(METHODS[name].title, name) for name in names],
            value=_names(config),
            label=text.METHODS,
            elem_id="methods",
            render=False,
        )

    # Placing

    def place_align(self) -> list[tuple[str, gr.Group]]:
        """Methods and the settings that matter, the rest folded away. Returns each method's groups of settings."""
        groups: list[tuple[str, gr.Group]] = []

        def place_method(name: str, paths: Sequence[str]) -> None:
            if not paths:
                return
            with gr.Group(visible=name in _names(self._begin)) as group:
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
        """The attack's settings, the rest folded away."""
        with gr.Group():
            for path in self.attack.main:
                self.attack.place(path)
        with gr.Accordion(text.ADVANCED, open=False, elem_id="attack-advanced"), gr.Group():
            for path in self.attack.advanced:
                self.attack.place(path)

    # Filling

    @property
    def outputs(self) -> list[Component | BlockContext]:
        """What `fill` writes to."""
        return [self.base, self.chosen, *self._controls()]

    def fill(self, config: LabConfig) -> list[Any]:
        """Updates that make the page show `config`."""
        values = self._lab.values(config)
        for name, form in self._methods.items():
            values += form.values(_method(config, name))
        return [config.model_dump_json(), _names(config), *values, *self.attack.values(config.attack)]

    # Reading

    @property
    def inputs(self) -> list[Component | BlockContext]:
        """What `read` reads from."""
        return [self.base, self.chosen, *self._controls()]

    def read(self, base: str, chosen: Sequence[str], *values: Any) -> LabConfig:
        """The config on the page.

        Raises:
            ConfigError: names every setting that is missing or not allowed, or no method is chosen.
        """
        left = iter(values)
        config = self._lab.parse(LabConfig.model_validate_json(base), _take(left, self._lab))
        methods = []
        for name, form in self._methods.items():
            given = _take(left, form)
            if name in chosen:
                methods.append(form.parse(_method(config, name), given))
        attack = self.attack.parse(config.attack, _take(left, self.attack))
        return replace_methods(config, methods).model_copy(update={"attack": attack})

    def read_attack(self, base: str, *values: Any) -> AttackConfig:
        """The attack on the page, from `base` and the values of `attack.components`. Raises `ConfigError`."""
        return self.attack.parse(LabConfig.model_validate_json(base).attack, values)

    def _controls(self) -> list[Component | BlockContext]:
        forms = [self._lab, *self._methods.values(), self.attack]
        return [component for form in forms for component in form.components]


def _names(config: LabConfig) -> list[str]:
    return [method.name for method in config.alignment.methods]


def _method(config: LabConfig, name: str) -> Any:
    """The config's settings of a method, or the defaults if it does not use it."""
    return next((method for method in config.alignment.methods if method.name == name), default_method(name))


def _take(values: Iterator[Any], form: Form) -> list[Any]:
    return [next(values) for _ in form.components]
