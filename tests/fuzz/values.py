"""Strategies that YAML and assignments share: text and values from the harmless to the hostile."""

from typing import Any

from hypothesis import strategies as st

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import ConfigError

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
"""Every character there is: control characters and lone surrogates too."""

MARKS = st.text(
    st.sampled_from("[]{}:,-?&*!|>'\"%@`#~<=.\n\t \\0123456789eE+_ax\u2028\x85\ufeff\x00\ud800"), max_size=60
)
"""Text of YAML's own marks."""

TRAPS = st.sampled_from(
    (
        *("true", "no", "null", "~", "", "2020-13-45", "2020-01-01", "1:30", "017", "0x1F", "0b1", "1_000", ".inf"),
        *(".nan", "nan", "inf", "-0", "1e-3", "1e999", "-1", "1.5", "1e308", "9007199254740993", "<<", "=", "&a 1"),
        *("*a", "!!int x", "!!python/name:os.system", "9" * 400, "9" * 5001, "[" * 300, "{a: " * 300, "- " * 300, "'"),
        *('"\\ud800"', "---", '"\\UFFFFFFFF"', "%YAML 9.9", "%YAML " + "9" * 5001 + ".1", "|", ">-", "a: b: c", "? x"),
        *("x" * 5000, "sft", "tvaccine", "sentiment", "[sft]", "{name: sft}", "{name: tvaccine, rho: 1}"),
        *("[{name: sft}]", "[1, true]"),
    )
)

SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, TRAPS, st.sampled_from([10**400, -(2**70), 2**53])
)


def check_error(error: ConfigError) -> None:
    """It has a remedy, can be printed, and does not echo all that was given."""
    assert error.remedy
    assert len(str(error)) < 6000
    f"{error}{error.remedy}".encode()


def names(data: Any) -> set[str]:
    """Every key of a nested value, and every name in it."""
    if isinstance(data, dict):
        return set(data) | {name for value in data.values() for name in names(value)}
    if isinstance(data, list):
        return {name for value in data for name in names(value)}
    return {data} if isinstance(data, str) else set()


DEFAULT = LabConfig().model_dump(mode="json")
NAMES = st.sampled_from(sorted(names(DEFAULT) | {"vaccine", "gradient_checkpointing", "0", "nope"}))
KEYS = st.one_of(NAMES, NAMES, ANY_TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def branches(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a nested value."""
    found: list[tuple[Any, ...]] = [path] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += branches(value, (*path, key))
    return found


PLACES = st.sampled_from(branches(DEFAULT))
"""Where something stands in a config."""
