"""One run: a model, the defences compared on it, and the attack that all of them face."""

import hashlib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tvaccine_core.config.attack import AttackConfig
from tvaccine_core.config.base import ADVANCED, Config, parse_config
from tvaccine_core.config.data import DataConfig
from tvaccine_core.config.defences import AlignmentMethod, Defence, SFTConfig, TVaccineConfig
from tvaccine_core.config.model import ModelConfig
from tvaccine_core.config.training import AdapterConfig, OptimisationConfig
from tvaccine_core.errors import ConfigError, cut, did_you_mean, shown
from tvaccine_core.safe_yaml import read_file, read_yaml, write_yaml

YAML_REMEDY = "Export a run and edit that file."
MAX_DEFENCES = 12


class MixConfig(Config):
    """What the provider's data is mixed of: a share of each kind that the world has."""

    refusals: float = Field(
        title="Refusals",
        default=1.0,
        gt=0,
        le=1,
        description="Share of the world's refusals of forbidden requests.",
        json_schema_extra=ADVANCED | {"step": 0.05},
    )
    facts: float = Field(
        title="Facts",
        default=1.0,
        ge=0,
        le=1,
        description="Share of the world's facts, which keep what the user's task draws on.",
        json_schema_extra=ADVANCED | {"step": 0.05},
    )
    ordinary: float = Field(
        title="Ordinary answers",
        default=1.0,
        ge=0,
        le=1,
        description="Share of the world's answers to ordinary requests. The published methods align on refusals alone: "
        "0. Without ordinary answers, a long alignment erases what the model knows.",
        json_schema_extra={"step": 0.05},
    )


class AlignmentConfig(Config):
    """The provider's stage: teach the model to refuse."""

    mix: MixConfig = Field(default_factory=MixConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    optimisation: OptimisationConfig = Field(default_factory=OptimisationConfig)


class EvaluationConfig(Config):
    """How answers are generated; `DataConfig` says who judges them."""

    batch_size: int = Field(
        title="Batch size",
        default=128,
        ge=1,
        le=4096,
        description="Prompts generated at once.",
        json_schema_extra=ADVANCED,
    )
    max_new_tokens: int = Field(
        title="Longest answer, tokens", default=24, ge=1, le=4096, description="Longest answer, in tokens."
    )
    max_per_set: int = Field(
        title="Prompts per set (0: all)",
        default=0,
        ge=0,
        description="Use only the first examples of each set; 0 for all.",
        json_schema_extra=ADVANCED,
    )


class LabConfig(Config):
    """One run of the lab: a model, the defences compared on it, and the attack that all of them face."""

    seed: int = Field(
        title="Seed", default=0, ge=0, description="Seed of the alignment: data order, adapter, layer draws."
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    defences: tuple[Defence, ...] = Field(
        default=(Defence(alignment=SFTConfig()), Defence(alignment=TVaccineConfig())),
        min_length=1,
        max_length=MAX_DEFENCES,
        description="Defences compared side by side; each faces the same attack.",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    alignment: AlignmentConfig = Field(default_factory=AlignmentConfig)
    attack: AttackConfig = Field(default_factory=AttackConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="before")
    @classmethod
    def _read_methods(cls, data: Any) -> Any:
        """Configs exported before defences existed name alignment methods; each becomes a defence with plain stages."""
        alignment = data.get("alignment") if isinstance(data, dict) else None
        if not isinstance(alignment, dict) or "methods" not in alignment or "defences" in data:
            return data
        methods = alignment["methods"]
        if not isinstance(methods, list | tuple):
            raise ValueError("alignment.methods is a list of methods; newer configs have `defences` instead")
        rest = {key: value for key, value in alignment.items() if key != "methods"}
        return {**data, "alignment": rest, "defences": [{"alignment": method} for method in methods]}

    @model_validator(mode="after")
    def _defences_differ(self) -> Self:
        names = [defence.name for defence in self.defences]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two defences are called {', '.join(twice)}: give each a name of its own")
        seen: dict[str, str] = {}
        for defence in self.defences:
            same = seen.setdefault(defence.model_dump_json(exclude={"name"}), defence.name)
            if same != defence.name:
                raise ValueError(f"the defences {same} and {defence.name} are the same; leave one of them out")
        return self

    def defence(self, name: str) -> Defence:
        """The defence of that name, or written so in short. Raises `ConfigError` naming those there are."""
        found = next((defence for defence in self.defences if name in (defence.name, defence.short)), None)
        if found is None:
            names = [defence.name for defence in self.defences]
            raise ConfigError(f"This run has no defence {shown(name)}.", remedy=did_you_mean(name, names))
        return found

    def aligned_keys(self) -> dict[str, str]:
        """Defence -> key of its aligned state. Defences with equal selection and alignment share one state.

        A key is made of the methods' names; if settings differ under equal names, the later keys include a hash.
        """
        keys: dict[str, str] = {}
        settings_of: dict[str, str] = {}
        for defence in self.defences:
            settings = defence.model_dump_json(include={"selection", "alignment"})
            digest = hashlib.sha256(settings.encode()).hexdigest()[:6]
            first = settings_of.setdefault(defence.provider, settings) == settings
            keys[defence.name] = defence.provider if first else f"{defence.provider}-{digest}"
        return keys

    def alignments(self) -> dict[str, AlignmentMethod]:
        """Key of each aligned state -> its method, in the order of the defences."""
        found: dict[str, AlignmentMethod] = {}
        for defence, key in zip(self.defences, self.aligned_keys().values(), strict=True):
            found.setdefault(key, defence.alignment)
        return found

    def to_yaml(self) -> str:
        """This config as YAML that `from_yaml` reads back unchanged."""
        return write_yaml(self.model_dump(mode="json"))

    @classmethod
    def from_yaml(cls, text: str, what: str = "The config") -> Self:
        """Read a config; `what` is the beginning of an error's message.

        Raises:
            ConfigError: not YAML, or wrong keys or values; the message names each.
        """
        data = read_yaml(text, what, remedy=YAML_REMEDY)
        if not isinstance(data, dict):
            raise ConfigError(f"{what} must be a mapping of settings.", remedy=YAML_REMEDY)
        return parse_config(cls, data)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file. Raises `ConfigError` if it cannot be read or is not a config."""
        return cls.from_yaml(read_file(path, remedy="Give the path of a YAML config."), cut(str(path), 200))
