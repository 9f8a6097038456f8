"""A defence: a method for each of the four stages, from the alignment data to the repair.

    selection  ->  alignment  ->  fine-tuning  ->  repair
    which data     how it is      how the user's   what the provider
                   trained        data is trained  does afterwards

SFT is the defence in which every stage is plain. In short a defence is written by its alignment method and the methods
of its other stages that are not plain, joined by `+`: `sft`, `tvaccine`, `tvaccine+identity`. Settings may follow their
method: `tvaccine rho=3`, `tvaccine rho=3 num_layers=2 + identity`. They then stand in the defence's name, too.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from tvaccine_core.config.base import ADVANCED, Config, parse_config
from tvaccine_core.errors import ConfigError, did_you_mean, shown

Stage = Literal["selection", "alignment", "finetuning", "repair"]
STAGES: tuple[Stage, ...] = get_args(Stage)

MAX_NAME = 64
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9+_-]{{0,{MAX_NAME - 1}}}")
"""Names of defences; they stand in names of states and folders."""


Rho = Annotated[
    float,
    Field(
        title="Perturbation intensity ρ",
        ge=0,
        le=50,
        description="Perturbation intensity: L2 radius, joint over layers, tokens and batch.",
        json_schema_extra={"step": 0.1},
    ),
]
PerturbEvery = Annotated[
    int,
    Field(
        title="Steps from one perturbed step to the next τ",
        ge=1,
        description="Steps from one perturbed step to the next (tau). The steps between descend the plain loss and "
        "cost less.",
        json_schema_extra=ADVANCED,
    ),
]


class AllDataConfig(Config):
    """All of the alignment data is used: the plain stage."""

    name: Literal["all"] = "all"


class SFTConfig(Config):
    """Supervised fine-tuning on the alignment data: the plain stage."""

    name: Literal["sft"] = "sft"


class VaccineConfig(Config):
    """Vaccine (arXiv:2402.01109): perturb the hidden states of every layer."""

    name: Literal["vaccine"] = "vaccine"
    rho: Rho = 1.0
    perturb_every: PerturbEvery = 1


class TVaccineConfig(Config):
    """T-Vaccine (arXiv:2410.09760): perturb and train the safety-critical layers, freeze the rest."""

    name: Literal["tvaccine"] = "tvaccine"
    rho: Rho = 1.0
    perturb_every: PerturbEvery = 1
    num_layers: int = Field(
        title="Layers drawn at a time γ",
        default=4,
        ge=1,
        le=512,
        description="Layers drawn, perturbed and trained at a time (gamma).",
    )
    resample_every: int = Field(
        title="Steps between draws",
        default=20,
        ge=1,
        description="Steps between draws of layers.",
        json_schema_extra=ADVANCED,
    )
    rescore_every: int = Field(
        title="Steps between scorings", default=200, ge=1, description="Steps between scorings of the layers."
    )
    layer_choice: Literal["sampled", "top_k", "uniform", "first", "last", "all"] = Field(
        title="Choice of layers",
        default="sampled",
        description="How layers are chosen: drawn by their scores, or an ablation.",
        json_schema_extra=ADVANCED,
    )
    freezing: Literal["attention", "layer"] = Field(
        title="Freezing",
        default="attention",
        description="`attention`: the released code, only attention adapters are frozen by layer. "
        "`layer`: the paper, everything outside the drawn layers is frozen.",
        json_schema_extra=ADVANCED,
    )
    probe_batch_size: int = Field(
        title="Harmful samples per scoring",
        default=16,
        ge=1,
        le=1024,
        description="Harmful examples that one scoring uses.",
        json_schema_extra=ADVANCED,
    )


class PlainConfig(Config):
    """Fine-tuning on the user's data as it is: the plain stage."""

    name: Literal["plain"] = "plain"


class NoRepairConfig(Config):
    """Nothing follows the user's fine-tuning: the plain stage."""

    name: Literal["none"] = "none"


class IdentityConfig(Config):
    """A repair that changes nothing: the control that every other repair is measured against."""

    name: Literal["identity"] = "identity"


SelectionMethod = AllDataConfig
AlignmentMethod = Annotated[SFTConfig | VaccineConfig | TVaccineConfig, Field(discriminator="name")]
FinetuningMethod = PlainConfig
RepairMethod = Annotated[NoRepairConfig | IdentityConfig, Field(discriminator="name")]
StageConfig = AllDataConfig | SFTConfig | VaccineConfig | TVaccineConfig | PlainConfig | NoRepairConfig | IdentityConfig

METHOD_CONFIGS: dict[Stage, tuple[type[Config], ...]] = {
    "selection": (AllDataConfig,),
    "alignment": (SFTConfig, VaccineConfig, TVaccineConfig),
    "finetuning": (PlainConfig,),
    "repair": (NoRepairConfig, IdentityConfig),
}
"""The methods of each stage, its plain one first."""


def name_of(cls: type[Config]) -> str:
    """The name of a method's config class."""
    return str(cls.model_fields["name"].default)


PLAIN: dict[Stage, str] = {stage: name_of(classes[0]) for stage, classes in METHOD_CONFIGS.items()}
"""The method of each stage that does nothing special."""

_STAGE_OF: dict[str, Stage] = {name_of(cls): stage for stage, classes in METHOD_CONFIGS.items() for cls in classes}
_CONFIG_OF = {name_of(cls): cls for classes in METHOD_CONFIGS.values() for cls in classes}


def _settings_of(cls: type[Config]) -> list[str]:
    """Names of a method's settings, in the order in which they stand in a defence's name."""
    return [name for name in cls.model_fields if name != "name"]


def stages_of(spec: str) -> dict[Stage, str]:
    """The methods that `spec` names, by stage: `tvaccine+identity` -> alignment tvaccine, repair identity.

    Raises:
        ConfigError: see `read_short`.
    """
    return {stage: name for stage, (name, _) in read_short(spec).items()}


def read_short(spec: str) -> dict[Stage, tuple[str, dict[str, str]]]:
    """The methods that `spec` names, by stage, and the settings written behind each: `tvaccine rho=3`.

    Raises:
        ConfigError: an unknown method or setting, or two methods of one stage.
    """
    found: dict[Stage, tuple[str, dict[str, str]]] = {}
    for part in re.split(r"\+(?=\s*[A-Za-z]|\s*$)", spec):  # the + of 1e+3 joins nothing
        name, *words = re.sub(r"\s*=\s*", "=", part).split() or [""]
        stage = _STAGE_OF.get(name)
        if stage is None:
            message = f"There is no method {shown(name)} for the defence {shown(spec)}."
            raise ConfigError(message, remedy=f"{did_you_mean(name, _STAGE_OF)} Join them by +, one per stage at most.")
        if stage in found:
            raise ConfigError(
                f"The defence {shown(spec)} names two methods of the {stage} stage, {found[stage][0]} and {name}.",
                remedy="Leave one of them out.",
            )
        found[stage] = (name, _read_settings(name, words, spec))
    return found


def _read_settings(method: str, words: list[str], spec: str) -> dict[str, str]:
    """`rho=3` -> rho: 3. Raises `ConfigError`."""
    names = _settings_of(_CONFIG_OF[method])
    found: dict[str, str] = {}
    for word in words:
        name, is_setting, value = word.partition("=")
        if not is_setting:
            raise ConfigError(
                f"{shown(word)} sets nothing in the defence {shown(spec)}.",
                remedy="Write settings behind their method, as in tvaccine rho=3; join methods by +.",
            )
        if name not in names:
            remedy = did_you_mean(name, names) if names else "It has none."
            raise ConfigError(f"{method} has no setting {shown(name)} for the defence {shown(spec)}.", remedy=remedy)
        if name in found:
            raise ConfigError(f"The defence {shown(spec)} sets {name} twice.", remedy="Leave one of them out.")
        found[name] = value
    return found


class Defence(Config):
    """A method for each stage. Missing stages are plain; a missing name becomes the short form."""

    name: str = Field(default="", description="Its name in charts, tables and files; names differ within a run.")
    selection: SelectionMethod = Field(default_factory=AllDataConfig, description="Which alignment data is used.")
    alignment: AlignmentMethod = Field(default_factory=SFTConfig, description="How the provider aligns the model.")
    finetuning: FinetuningMethod = Field(default_factory=PlainConfig, description="How the user's data is trained on.")
    repair: RepairMethod = Field(default_factory=NoRepairConfig, description="What the provider does afterwards.")

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        try:
            return parse_defence(data).model_dump(mode="json")
        except ConfigError as error:
            raise ValueError(f"{error} {error.remedy}") from error

    @model_validator(mode="after")
    def _name_itself(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.spec)  # frozen only from here on
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"a defence's name has 1 to {MAX_NAME} letters, digits, + _ -, and begins with a letter or digit"
            )
        return self

    @property
    def spec(self) -> str:
        """The short form: its alignment method and every other method that is not plain, joined by `+`."""
        return "+".join(self._told(STAGES))

    @property
    def provider(self) -> str:
        """The part of `spec` before the user's fine-tuning."""
        return "+".join(self._told(("selection", "alignment")))

    def _told(self, stages: tuple[Stage, ...]) -> list[str]:
        return [self.method(stage).name for stage in self._shown_stages(stages)]

    def _shown_stages(self, stages: tuple[Stage, ...]) -> list[Stage]:
        return [stage for stage in stages if stage == "alignment" or self.method(stage).name != PLAIN[stage]]

    @property
    def short(self) -> str:
        """How it is written in short, with the settings that its name tells; empty if it has a name of its own."""
        rest, parts = self.name, []
        for method in (self.method(stage) for stage in self._shown_stages(STAGES)):
            start = f"{'+' if parts else ''}{method.name}"
            if not rest.startswith(start):
                return ""
            rest, words = rest.removeprefix(start), [method.name]
            for setting in _settings_of(type(method)):
                told = _in_name(method, setting)
                if rest.startswith(told):
                    rest = rest.removeprefix(told)
                    words.append(f"{setting}={_plain(getattr(method, setting))}")
            parts.append(" ".join(words))
        return "" if rest else "+".join(parts)

    def method(self, stage: Stage) -> StageConfig:
        """The settings of one stage."""
        return getattr(self, stage)


def parse_defence(spec: str, settings: Callable[[str], Config] | None = None) -> Defence:
    """The defence written in short. The settings written in it stand in its name, too.

    Args:
        spec: see `read_short`.
        settings: by a method's name, the settings that are not written; by default the method's own defaults.

    Raises:
        ConfigError: an unknown method or setting, a value that is not allowed, or too many settings for a name.
    """
    written = read_short(spec)
    methods: dict[str, dict[str, Any]] = {}
    for stage, (name, given) in written.items():
        cls = _CONFIG_OF[name]
        begin = settings(name) if settings else cls()
        methods[stage] = parse_config(cls, begin.model_dump(mode="json") | given).model_dump(mode="json")
    defence = parse_config(Defence, methods)
    if not any(given for _, given in written.values()):
        return defence
    name = _name_with(defence, {stage: given for stage, (_, given) in written.items()})
    if len(name) > MAX_NAME:
        raise ConfigError(
            f"The name of the defence {shown(spec)} is too long: {name} has {len(name)} characters of {MAX_NAME}.",
            remedy="Write fewer settings, or give the defence a name of its own in a YAML config.",
        )
    return parse_config(Defence, {**methods, "name": name})


def _name_with(defence: Defence, settings: Mapping[Stage, Mapping[str, str]]) -> str:
    """A defence's name that tells these settings."""
    parts = []
    for stage in defence._shown_stages(STAGES):
        method, told = defence.method(stage), settings.get(stage, {})
        in_order = [name for name in _settings_of(type(method)) if name in told]
        parts.append(method.name + "".join(_in_name(method, name) for name in in_order))
    return "+".join(parts)


def _in_name(method: Config, setting: str) -> str:
    """How a setting stands in a defence's name: `-rho-0_5`."""
    return f"-{setting}-{re.sub('[^A-Za-z0-9_-]', '_', _plain(getattr(method, setting)))}"


def _plain(value: Any) -> str:
    """A value as people write it: 3 for 3.0."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
