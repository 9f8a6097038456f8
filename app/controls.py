"""Config fields as Gradio controls, and back. Label, help, range and step come from the field's own metadata.

A field is addressed by its dotted path inside a config (`optimisation.learning_rate`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from app import text
from app.services import Config, parse_config

ConfigT = TypeVar("ConfigT", bound=Config)

SLIDER_STOPS = 200
"""A number whose range and step give at most this many stops is a slider; other numbers are typed."""


@dataclass(frozen=True)
class Leaf:
    """A field that gets a control, with its JSON schema, which holds its bounds."""

    field: FieldInfo
    schema: dict[str, Any]

    @property
    def extra(self) -> dict[str, Any]:
        """The field's notes for the page: `advanced`, `step`, `choices`."""
        return self.field.json_schema_extra if isinstance(self.field.json_schema_extra, dict) else {}

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Smallest and largest value of a control; an open bound is included here, validation is stricter."""
        low = self.schema.get("minimum", self.schema.get("exclusiveMinimum"))
        high = self.schema.get("maximum", self.schema.get("exclusiveMaximum"))
        return low, high


def fields_of(cls: type[Config], prefix: str = "") -> dict[str, Leaf]:
    """Every leaf field of a config by path, also of nested configs; without discriminators (`name: Literal[...]`)."""
    found: dict[str, Leaf] = {}
    schemas = cls.model_json_schema()["properties"]
    for name, field in cls.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Config):
            found |= fields_of(annotation, f"{prefix}{name}.")
        elif not (get_origin(annotation) is Literal and len(get_args(annotation)) == 1):
            found[prefix + name] = Leaf(field, schemas[name])
    return found


def make_control(path: str, leaf: Leaf, value: Any, choices: Sequence[Any] | None, elem_id: str) -> Component:
    """The control of one field, not placed yet. `choices` replaces the field's own choices."""
    name = path.rpartition(".")[2]
    annotation = leaf.field.annotation
    common: dict[str, Any] = {
        "label": leaf.field.title or name.replace("_", " ").capitalize(),
        "info": (leaf.field.description or "").replace("`", ""),
        "value": list(value) if isinstance(value, tuple) else value,
        "elem_id": elem_id,
        "interactive": True,
        "render": False,
    }
    if choices is None and get_origin(annotation) is Literal:
        titles = text.CHOICES | leaf.extra.get("choices", {})
        choices = [(titles.get(item, str(item).replace("_", " ")), item) for item in get_args(annotation)]
    if choices is not None:
        return gr.Radio(choices=list(choices), **common) if len(choices) < 3 else gr.Dropdown(list(choices), **common)
    if get_origin(annotation) is tuple:
        return gr.Dropdown(list(value), multiselect=True, allow_custom_value=True, **common)
    if annotation is bool:
        return gr.Checkbox(**common)
    if annotation in (int, float):
        low, high = leaf.bounds
        step = leaf.extra.get("step")
        if low is not None and high is not None and step and (high - low) / step <= SLIDER_STOPS:
            return gr.Slider(low, high, step=step, buttons=[], **common)
        whole = annotation is int
        return gr.Number(
            minimum=low, maximum=high, step=step or (1 if whole else 0.01), precision=0 if whole else None, **common
        )
    return gr.Textbox(**common)


class Form:
    """Controls for the fields of one config class: made here, placed by a screen."""

    def __init__(
        self,
        config: Config,
        prefix: str,
        main: Sequence[str] = (),
        leave_out: Sequence[str] = (),
        choices: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Make a control for every field, showing its value in `config`.

        Args:
            config: the controls' first values.
            prefix: the beginning of every control's id in the page.
            main: paths of visible controls, in this order; by default the fields not marked advanced.
            leave_out: paths, or beginnings of paths, that get no control.
            choices: for fields whose values depend on the data.
        """
        leaves = {path: leaf for path, leaf in fields_of(type(config)).items() if not path.startswith(tuple(leave_out))}
        self.main = list(main) or [path for path, leaf in leaves.items() if not leaf.extra.get("advanced")]
        self.advanced = [path for path in leaves if path not in self.main]
        self.controls = {
            path: make_control(
                path, leaf, read_path(config, path), (choices or {}).get(path), f"{prefix}-{path.replace('.', '-')}"
            )
            for path, leaf in leaves.items()
        }

    def place(self, path: str) -> None:
        """Put the control of `path` here."""
        self.controls[path].render()

    @property
    def components(self) -> list[Component]:
        """Every control; `values` and `parse` keep this order."""
        return list(self.controls.values())

    def values(self, config: Config) -> list[Any]:
        """The controls' values for `config`."""
        shown = [read_path(config, path) for path in self.controls]
        return [list(value) if isinstance(value, tuple) else value for value in shown]

    def parse(self, base: ConfigT, values: Sequence[Any]) -> ConfigT:
        """`base` with the controls' values.

        Raises:
            ConfigError: names every value that is not allowed, or is missing.
        """
        data = base.model_dump(mode="json")
        for path, value in zip(self.controls, values, strict=True):
            *parents, name = path.split(".")
            place = data
            for parent in parents:
                place = place[parent]
            place[name] = value
        return parse_config(type(base), data)


def read_path(config: Any, path: str) -> Any:
    """The value at a dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config
