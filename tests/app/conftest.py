"""A lab in a temporary folder, empty or with one finished run."""

from pathlib import Path

import pytest
from written_runs import finish_alignments, finish_attacks, small_config

from app.services import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty lab."""
    return Lab(tmp_path / "home")


@pytest.fixture
def done_run(lab: Lab) -> str:
    """A run of `lab` that is aligned by SFT and T-Vaccine, and attacked once."""
    run_id = lab.start_alignment(small_config(), "small run")
    finish_alignments(lab, run_id)
    lab.start_attack(run_id, lab.run(run_id).config.attack)
    finish_attacks(lab, run_id)
    return run_id
