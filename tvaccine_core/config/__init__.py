"""Every setting of the lab, once: validation, CLI options, UI controls, YAML and the docs come from these fields.

Users read a field's `title` and `description` beside its control. `json_schema_extra` may hold `advanced` (folded),
`step` (of a slider or number) and `choices` (titles for a Literal's values).
"""

from tvaccine_core.config.attack import AttackConfig
from tvaccine_core.config.base import ADVANCED, Config, ConfigT, parse_config
from tvaccine_core.config.data import DataConfig, JudgeKey
from tvaccine_core.config.defences import (
    METHOD_CONFIGS,
    PLAIN,
    STAGES,
    AlignmentMethod,
    AllDataConfig,
    Defence,
    IdentityConfig,
    NoRepairConfig,
    PlainConfig,
    SFTConfig,
    Stage,
    StageConfig,
    TVaccineConfig,
    VaccineConfig,
    name_of,
    parse_defence,
    read_short,
    stages_of,
)
from tvaccine_core.config.model import YOUR_MODEL, ActivationMemory, ModelConfig
from tvaccine_core.config.presets import PRESETS, Preset
from tvaccine_core.config.run import AlignmentConfig, EvaluationConfig, LabConfig, MixConfig
from tvaccine_core.config.training import ALL_LINEAR, LINEAR_MODULES, AdapterConfig, OptimisationConfig

__all__ = [
    "ADVANCED",
    "ALL_LINEAR",
    "LINEAR_MODULES",
    "METHOD_CONFIGS",
    "PLAIN",
    "PRESETS",
    "STAGES",
    "YOUR_MODEL",
    "ActivationMemory",
    "AdapterConfig",
    "AlignmentConfig",
    "AlignmentMethod",
    "AllDataConfig",
    "AttackConfig",
    "Config",
    "ConfigT",
    "DataConfig",
    "Defence",
    "EvaluationConfig",
    "IdentityConfig",
    "JudgeKey",
    "LabConfig",
    "MixConfig",
    "ModelConfig",
    "NoRepairConfig",
    "OptimisationConfig",
    "PlainConfig",
    "Preset",
    "SFTConfig",
    "Stage",
    "StageConfig",
    "TVaccineConfig",
    "VaccineConfig",
    "name_of",
    "parse_config",
    "parse_defence",
    "read_short",
    "stages_of",
]
