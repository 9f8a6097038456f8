"""A defence: a choice for each of the four stages, from the alignment data to what follows the attack.

    selection  ->  alignment  ->  fine-tuning  ->  repair
    which data     how it is      how the user's   what the provider
                   trained        data is trained  does afterwards

SFT is the defence in which every stage is plain. In short a defence is written by its alignment method and the methods
of its other stages that are not plain, joined by `+`: `sft`, `tvaccine`, `tvaccine+identity`.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from tvaccine_core.config.base import ADVANCED, Config, parse_config
from tvaccine_core.errors import ConfigError, did_you_mean, shown

Stage = Literal["selection", "alignment", "finetuning", "repair"]
STAGES: tuple[Stage, ...] = get_args(Stage)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]{0,39}")
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
    """The user's data is fine-tuned on as it is: the plain stage."""

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


def stages_of(spec: str) -> dict[Stage, str]:
    """The methods that `spec` names, by stage: `tvaccine+identity` -> alignment tvaccine, repair identity.

    Raises:
        ConfigError: an unknown method, or two of one stage.
    """
    found: dict[Stage, str] = {}
    for part in (part.strip() for part in spec.split("+")):
        stage = _STAGE_OF.get(part)
        if stage is None:
            words = f"There is no method {shown(part)} for the defence {shown(spec)}."
            raise ConfigError(words, remedy=f"{did_you_mean(part, _STAGE_OF)} Join them by +, one per stage at most.")
        if stage in found:
            raise ConfigError(
                f"The defence {shown(spec)} names two methods of the {stage} stage, {found[stage]} and {part}.",
                remedy="Leave one of them out.",
            )
        found[stage] = part
    return found


class Defence(Config):
    """A choice for each stage. Stages left out are plain; without a name it is called by those that are not."""

    name: str = Field(default="", description="What charts, tables and files call it; names differ within a run.")
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
            return {stage: {"name": method} for stage, method in stages_of(data).items()}
        except ConfigError as error:
            raise ValueError(f"{error} {error.remedy}") from error

    @model_validator(mode="after")
    def _name_itself(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.spec)  # frozen only from here on
        if not NAME.fullmatch(self.name):
            raise ValueError("a defence's name has 1 to 40 letters, digits, + _ -, and begins with a letter or digit")
        return self

    @property
    def spec(self) -> str:
        """Its alignment method, and those of the other stages that are not plain, joined by `+`."""
        return "+".join(self._told(STAGES))

    @property
    def provider(self) -> str:
        """The part of `spec` that is done before the user comes."""
        return "+".join(self._told(("selection", "alignment")))

    def _told(self, stages: tuple[Stage, ...]) -> list[str]:
        told: list[Stage] = [
            stage for stage in stages if stage == "alignment" or self.method(stage).name != PLAIN[stage]
        ]
        return [self.method(stage).name for stage in told]

    def method(self, stage: Stage) -> StageConfig:
        """The settings of one stage."""
        return getattr(self, stage)


def parse_defence(spec: str) -> Defence:
    """The defence written in short, with default settings. Raises `ConfigError`."""
    return parse_config(Defence, {stage: {"name": method} for stage, method in stages_of(spec).items()})
