"""The routes beside the page: its own files, and what can be taken away from a run."""

import csv
import io
import zipfile

import pytest
import yaml
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.exports import routes
from app.services import AttackConfig, Lab, LabConfig


@pytest.fixture
def client(lab: Lab) -> TestClient:
    return TestClient(Starlette(routes=routes(lab)))


def test_the_page_s_own_files_are_served_from_here(client: TestClient) -> None:
    for name, start in (("lab.js", "// Behaviour"), ("lab.css", "/* The page"), ("plotly.min.js", "/**\n* plotly.js")):
        answer = client.get(f"/lab/{name}")
        assert answer.status_code == 200
        assert answer.text.startswith(start)


def test_plotly_is_the_whole_library(client: TestClient) -> None:
    assert len(client.get("/lab/plotly.min.js").content) > 1_000_000


def test_config_reads_back_with_the_attack_that_was_set(client: TestClient, lab: Lab, done_run: str) -> None:
    answer = client.get(f"/lab/runs/{done_run}/config.yaml")
    assert answer.headers["content-disposition"] == f'attachment; filename="{done_run}.yaml"'
    assert LabConfig.from_yaml(answer.text) == lab.run(done_run).config
    other = lab.start_alignment(lab.run(done_run).config)
    lab.start_attack(other, AttackConfig(harmful_ratio=0.3))
    exported = LabConfig.from_yaml(client.get(f"/lab/runs/{other}/config.yaml").text)
    assert exported.attack.harmful_ratio == 0.3


def test_tables_hold_every_step_and_score(client: TestClient, done_run: str) -> None:
    steps = list(csv.DictReader(io.StringIO(client.get(f"/lab/runs/{done_run}/steps.csv").text)))
    assert len(steps) == 2 * 40 + 2 * 20
    scores = list(csv.DictReader(io.StringIO(client.get(f"/lab/runs/{done_run}/scores.csv").text)))
    final = [
        row
        for row in scores
        if (row["state"], row["step"], row["eval_set"], row["score"])
        == ("attacked/sft/a1", "20", "unseen_names", "harmful_score")
    ]
    assert [row["percent"] for row in final] == ["73.0"]


def test_an_adapter_comes_with_its_model_card(client: TestClient, done_run: str) -> None:
    answer = client.get(f"/lab/runs/{done_run}/export.zip", params={"state": "attacked/sft/a1"})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {"adapter_config.json", "README.md"}
        card = archive.read("README.md").decode()
    assert "Do not deploy" in card
    assert "library_name: peft" in card


def test_the_whole_run_is_one_zip_with_the_attacks_that_were_made(client: TestClient, lab: Lab, done_run: str) -> None:
    other = lab.start_alignment(lab.run(done_run).config)
    for ratio in (0.3, 0.4):
        lab.start_attack(other, AttackConfig(harmful_ratio=ratio))
    with zipfile.ZipFile(io.BytesIO(client.get(f"/lab/runs/{other}/export.zip").content)) as archive:
        config = LabConfig.from_yaml(archive.read("config.yaml").decode())
        attacks = yaml.safe_load(archive.read("attacks.yaml"))
    assert config.attack.harmful_ratio == 0.3
    assert [attack["harmful_ratio"] for attack in attacks.values()] == [0.3, 0.4]
    with zipfile.ZipFile(io.BytesIO(client.get(f"/lab/runs/{done_run}/export.zip").content)) as archive:
        names = archive.namelist()
    assert {"config.yaml", "events.jsonl", "scores.csv", "states/aligned/sft/adapter_config.json"} <= set(names)


@pytest.mark.parametrize(
    "path",
    [
        "/lab/runs/nobody/config.yaml",
        "/lab/runs/..%2f..%2fetc/config.yaml",
        "/lab/runs/{run}/export.zip?state=aligned/vaccine",
        "/lab/runs/{run}/export.zip?state=../..",
        "/lab/runs/{run}/export.zip?state=base",
    ],
)
def test_what_does_not_exist_is_not_found(client: TestClient, done_run: str, path: str) -> None:
    answer = client.get(path.format(run=done_run))
    assert answer.status_code == 404


def test_not_found_says_what_to_do(client: TestClient, done_run: str) -> None:
    assert "Choose one" in client.get(f"/lab/runs/{done_run}/export.zip?state=nothing").text
