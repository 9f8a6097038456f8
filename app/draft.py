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
ALIGN_ADVANCED = ("seed", "evaluation.", "alignment.")
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
        self._config = config
        self._lab = Form(LabConfig, main=ALIGN_MAIN)
        self._methods = {name: Form(info.config) for name, info in METHODS.items() if info.stage == "alignment_stage"}
        self._groups: list[tuple[str, gr.Group]] = []
        self.attack = Form(AttackConfig, main=ATTACK_MAIN)
        self.base = gr.State(config.model_dump_json())
        self.chosen: gr.CheckboxGroup = gr.CheckboxGroup(
            choices=[(METHODS[name].title, name) for name in self._methods],
            value=[method.name for method in config.alignment.methods],
            label=text.METHODS,
            elem_id="methods",
            render=False,
        )

    # Placing

    def place_align(self) -> None:
        """Methods and the settings that matter; the rest folded away."""
        self.chosen.render()
        with gr.Group():
            for path in ALIGN_MAIN:
                self._lab.add(path, self._config, elem_id=f"align-{path.rpartition('.')[2]}")
        for name, form in self._methods.items():
            if form.main:
                with gr.Group(visible=name in self._chosen_in(self._config), elem_id=f"settings-{name}") as group:
                    method_label(name)
                    for path in form.main[:TWO_IN_SIGHT]:
                        form.add(path, self._method(self._config, name), elem_id=f"{name}-{path}")
                self._groups.append((name, group))
        with gr.Accordion(text.ADVANCED, open=False, elem_id="align-advanced"):
            for name, form in self._methods.items():
                hidden = [*form.main[TWO_IN_SIGHT:], *form.advanced]
                if hidden:
                    with gr.Group(visible=name in self._chosen_in(self._config)) as group:
                        method_label(name)
                        for path in hidden:
                            form.add(path, self._method(self._config, name), elem_id=f"{name}-{path}")
                    self._groups.append((name, group))
            with gr.Group():
                for path in self._lab.advanced:
                    if path.startswith(ALIGN_ADVANCED) and path != "alignment.methods":
                        self._lab.add(path, self._config, elem_id=f"align-{path.rpartition('.')[2]}")

    def place_attack(self) -> None:
        """The attack's settings; the rest folded away."""
        tasks = [(task.title, name) for name, task in data_of(self._config).tasks.items()]
        with gr.Group():
            for path in self.attack.main:
                self.attack.add(
                    path,
                    self._config.attack,
                    choices=tasks if path == "task" else None,
                    elem_id=f"attack-{path.rpartition('.')[2]}",
                )
        with gr.Accordion(text.ADVANCED, open=False, elem_id="attack-advanced"), gr.Group():
            for path in self.attack.advanced:
                self.attack.add(path, self._config.attack, elem_id=f"attack-{path.replace('.', '-')}")

    # Filling

    @property
    def outputs(self) -> list[Component | BlockContext]:
        """What `fill` writes to."""
        return [self.base, self.chosen, *(group for _, group in self._groups), *self._controls()]

    def fill(self, config: LabConfig) -> list[Any]:
        """Updates that make the page show `config`."""
        names = self._chosen_in(config)
        values = self._lab.values(config)
        for name, form in self._methods.items():
            values += form.values(self._method(config, name))
        values += self.attack.values(config.attack)
        return [
            config.model_dump_json(),
            list(names),
            *(gr.Group(visible=n in names) for n, _ in self._groups),
            *values,
        ]

    @property
    def groups(self) -> list[Component | BlockContext]:
        """What `show_groups` writes to."""
        return [group for _, group in self._groups]

    def show_groups(self, chosen: Sequence[str]) -> list[Any]:
        """Only the settings of the chosen methods are in sight."""
        return [gr.Group(visible=name in chosen) for name, _ in self._groups]

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
        config = self._lab.parse(LabConfig, LabConfig.model_validate_json(base), _take(left, self._lab))
        methods = []
        for name, form in self._methods.items():
            given = _take(left, form)
            if name in chosen:
                methods.append(form.parse(METHODS[name].config, self._method(config, name), given))
        attack = self.attack.parse(AttackConfig, config.attack, _take(left, self.attack))
        return replace_methods(config, methods).model_copy(update={"attack": attack})

    def read_attack(self, base: str, *values: Any) -> AttackConfig:
        """The attack on the page, from `base` and the values of `attack.components`. Raises `ConfigError`."""
        return self.attack.parse(AttackConfig, LabConfig.model_validate_json(base).attack, values)

    def _controls(self) -> list[Component | BlockContext]:
        forms = [self._lab, *self._methods.values(), self.attack]
        return [component for form in forms for component in form.components]

    @staticmethod
    def _chosen_in(config: LabConfig) -> tuple[str, ...]:
        return tuple(method.name for method in config.alignment.methods)

    @staticmethod
    def _method(config: LabConfig, name: str) -> Any:
        """The config's settings of a method, or the defaults if it does not use it."""
        return next((method for method in config.alignment.methods if method.name == name), default_method(name))


def _take(values: Iterator[Any], form: Form) -> list[Any]:
    return [next(values) for _ in form.components]
