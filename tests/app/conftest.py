"""A lab in a temporary folder, empty or with one finished run; and the whole page, served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_page import Served, serve_page
from written_runs import finish_alignments, finish_attacks, small_config

from app.services import Lab


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page as a user serves it on their own machine. Its runs are shared by all tests."""
    with serve_page(tmp_path_factory.mktemp("page") / "home") as served:
        yield served


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
