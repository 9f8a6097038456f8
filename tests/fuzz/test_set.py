"""Any assignment gives a config or the lab's own error, soon; what is not named stays as it was."""

import time

from hypothesis import given
from hypothesis import strategies as st
from values import ANY_TEXT, KEYS, MARKS, PLACES, TRAPS, check_error

from tvaccine_core.cli.options import override
from tvaccine_core.config import PRESETS, LabConfig
from tvaccine_core.errors import ConfigError

PATHS = st.one_of(
    PLACES.map(lambda place: ".".join({"0": "sft", "1": "tvaccine"}.get(str(key), str(key)) for key in place)),
    st.lists(KEYS, max_size=5).map(".".join),
    ANY_TEXT,
)
VALUES = st.one_of(ANY_TEXT, MARKS, TRAPS, st.integers().map(str), st.floats().map(str))
ASSIGNMENTS = st.one_of(st.builds("{}={}".format, PATHS, VALUES), ANY_TEXT)


@given(st.sampled_from(sorted(PRESETS)), st.lists(ASSIGNMENTS, min_size=1, max_size=3))
def test_any_assignments(preset: str, assignments: list[str]) -> None:
    before = PRESETS[preset].config
    began = time.process_time()
    try:
        config = override(before, assignments)
    except ConfigError as error:
        check_error(error)
        return
    finally:
        assert time.process_time() - began < 3
    assert LabConfig.from_yaml(config.to_yaml()) == config
    assert override(config, assignments) == config
    first = {assignment.partition("=")[0].partition(".")[0].strip() for assignment in assignments}
    for name in type(before).model_fields:
        assert name in first or getattr(config, name) == getattr(before, name)
