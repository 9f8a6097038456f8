"""`runs resume` right after its worker was killed: nobody has noticed yet that the job is interrupted."""

import subprocess
import sys
from pathlib import Path

import pytest

from tvaccine_core.cli import runs
from tvaccine_core.config import PRESETS
from tvaccine_core.store import JobRow, Store


def test_a_job_whose_worker_just_died_is_resumed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(PRESETS["sandbox-check"].config)
    job_id = store.enqueue(run_id, "align", {"aligned": "sft"})
    claim = "import sys, pathlib, tvaccine_core.store as s; s.Store(pathlib.Path(sys.argv[1])).claim('dead')"
    subprocess.run([sys.executable, "-c", claim, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    assert store.job(job_id).state == "running"

    class Followed(Exception):  # noqa: N818
        pass

    def follow(store: Store, job_ids: list[str], **_: object) -> list[JobRow]:
        assert job_ids == [job_id]
        raise Followed

    monkeypatch.setattr(runs, "follow", follow)
    with pytest.raises(Followed):
        runs.resume(run_id, data_dir=[tmp_path])
    job = store.job(job_id)
    assert (job.state, job.resumed) == ("queued", True)
