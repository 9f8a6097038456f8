"""Worlds, the sources of examples: one folder each. Configs name them. Torch-free."""

from collections.abc import Callable, Mapping

from tvaccine_core.errors import ConfigError, did_you_mean, shown
from tvaccine_core.worlds.sandbox.world import load_sandbox
from tvaccine_core.worlds.world import EvaluationSet, World

WORLDS: Mapping[str, Callable[[], World]] = {"sandbox": load_sandbox}


def load_world(name: str) -> World:
    """The world called `name`, built once. Raises `ConfigError` naming all worlds."""
    if name not in WORLDS:
        raise ConfigError(f"There is no world {shown(name)}.", remedy=did_you_mean(name, WORLDS))
    return WORLDS[name]()


def find_set(name: str) -> EvaluationSet | None:
    """The evaluation set of this name, of any world; None if no world has it (any more)."""
    return next((found[name] for found in (load().eval_sets for load in WORLDS.values()) if name in found), None)


def title_of_set(name: str) -> str:
    """The title of an evaluation set."""
    found = find_set(name)
    return found.title if found else name.replace("_", " ")
