"""Tables and JSON from stored events; exports that read back."""

import csv
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from tvaccine_core.cli.tables import render
from tvaccine_core.config import LabConfig
from tvaccine_core.errors import StoreError
from tvaccine_core.records import EvalRecord, GeneratedAnswer, Outcome, Proportion, StateRecord, StepRecord, Verdict
from tvaccine_core.results import collect, make_report
from tvaccine_core.store import Store
from tvaccine_core.store.export import export_run

HASHES = {"base": "b0", "aligned/sft": "a0", "attacked/sft/a1": "c0"}


def measured(state: str, step: int, eval_set: str, score: str, count: int) -> EvalRecord:
    return EvalRecord(
        state=state,
        state_hash=HASHES[state],
        step=step,
        eval_set=eval_set,
        judge="sandbox oracle",
        scores={score: Proportion(count=count, n=50)},
    )


def trained(step: int, elapsed_s: float) -> StepRecord:
    return StepRecord(
        step=step, num_steps=2, loss=0.5, learning_rate=1e-3, grad_norm=1, elapsed_s=elapsed_s, num_tokens=9
    )


def done(store: Store, run_id: str, kind: str, params: dict[str, object], events: list[object]) -> None:
    job = store.enqueue(run_id, kind, params)  # pyright: ignore[reportArgumentType]
    store.append(job, events)  # pyright: ignore[reportArgumentType]
    store.claim("w")
    store.finish(job, "done")


def fill(store: Store, run_id: str, after: int) -> None:
    """A run of SFT whose numbers are known: HS 0 before, `after` of 50 in the end."""
    done(store, run_id, "baseline", {}, [measured("base", 0, "unseen", "harmful_score", 50)])
    folder = store.run_dir(run_id) / "states" / "aligned" / "sft"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    events = [
        trained(1, 1.0),
        trained(2, 2.5),
        StateRecord(state="aligned/sft", state_hash="a0", path="states/aligned/sft"),
        measured("aligned/sft", 0, "unseen", "harmful_score", 0),
    ]
    done(store, run_id, "align", {"aligned": "sft"}, events)
    events = [
        measured("attacked/sft/a1", 0, "unseen", "harmful_score", 0),
        measured("attacked/sft/a1", 25, "unseen", "harmful_score", 10),
        measured("attacked/sft/a1", 50, "unseen", "harmful_score", after),
        measured("attacked/sft/a1", 50, "task:sentiment", "finetune_accuracy", 49),
    ]
    done(store, run_id, "attack", {"defence": "sft", "attack_id": "a1", "attack": {}}, events)


def test_scores_are_gathered_with_intervals_and_curve(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(LabConfig())
    fill(store, run_id, after=25)
    scores = collect(store, run_id)
    sft = scores.defences["sft"]
    assert scores.base is not None
    assert sft.before is not None
    assert scores.base.scores["unseen"]["harmful_score"].percent == 100
    assert sft.before.scores["unseen"]["harmful_score"].percent == 0
    assert sft.alignment_s == 2.5
    assert scores.alignment_time_ratio_to_sft == {"sft": 1.0}
    attack = sft.attacks["a1"]
    assert [point.step for point in attack.curve] == [0, 25, 50]
    assert attack.after == attack.curve[-1]
    final = attack.curve[-1].scores["unseen"]["harmful_score"]
    # Wilson, worked by hand for 25 of 50: centre 0.5, half-width 1.96 sqrt(0.25/50 + 1.96²/10000) / (1 + 1.96²/50).
    half = 100 * 1.959964 * math.sqrt(0.005 + 3.841459 / 10_000) / 1.07682918
    assert (final.percent, final.n, final.count) == (50.0, 50, 25)
    assert final.low == pytest.approx(50 - half, abs=1e-4)
    assert final.high == pytest.approx(50 + half, abs=1e-4)
    assert scores.defences["tvaccine"].before is None


def test_a_report_of_several_seeds_has_their_means(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_ids = [store.create_run(LabConfig(seed=seed)) for seed in (0, 1)]
    for run_id, after in zip(run_ids, (20, 40), strict=True):
        fill(store, run_id, after)
    report = make_report("demo", LabConfig(), [collect(store, run_id) for run_id in run_ids], 12.0)
    assert report.mean["attacked/sft/a1"]["unseen/harmful_score"] == 60.0
    assert report.mean["base"]["unseen/harmful_score"] == 100.0
    assert [run.seed for run in report.runs] == [0, 1]
    data = json.loads(report.model_dump_json())
    assert "ratio" in "".join(data["runs"][0])
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    for table in render(report.runs):
        console.print(table)
    text = console.export_text()
    assert "Mean over 2 seeds" in text
    assert "SFT, after a1" in text
    assert "60.0" in text
    assert text.index("base model") < text.index("SFT, before")


def test_outcomes_and_knowledge_have_a_table_and_columns_of_the_export(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    run_id = store.create_run(LabConfig())
    outcomes: dict[Outcome, int] = {"told": 12, "told in part": 3, "refused": 5, "forgotten": 20, "broken": 8}
    outcomes["off the point"] = 2
    record = measured("base", 0, "unseen", "harmful_score", 15)
    told = {"known": Proportion(count=32, n=50), "completed": Proportion(count=3, n=50)}
    record = record.model_copy(update={"outcomes": outcomes, "scores": record.scores | told})
    done(store, run_id, "baseline", {}, [record])
    scores, table = render([collect(store, run_id)])
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(table)
    lines = console.export_text().splitlines()
    (row,) = [line for line in lines if "base model" in line]
    assert row.split() == ["base", "model", "24", "6", "10", "40", "16", "4", "64", "6"]
    (head,) = [line for line in lines if "state" in line]
    assert head.split() == ["state", "told", "part", "refused", "wrong", "broken", "off", "knows", "completes"]
    folder = export_run(store, run_id, tmp_path / "out-folder")
    with (folder / "scores.csv").open(newline="") as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    assert {name: rows[f"outcome: {name}"]["count"] for name in outcomes} == {
        name: str(count) for name, count in outcomes.items()
    }
    assert rows["known"]["count"] == "32"
    assert scores.row_count == 1


def test_an_unfinished_run_can_be_shown(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(LabConfig())
    scores = collect(store, run_id)
    assert scores.base is None
    assert render([scores])


def test_an_export_reads_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    run_id = store.create_run(LabConfig(seed=4))
    fill(store, run_id, after=25)
    answer = GeneratedAnswer(
        state="base",
        state_hash="b0",
        step=0,
        eval_set="unseen",
        example_id="e1",
        prompt='Say "hi",\nplease',
        reference="hi",
        category=None,
        text="hi",
        verdict=Verdict(harmful=False, refused=False, exact=True, coherent=True),
    )
    store.save_answers(run_id, [answer])
    folder = export_run(store, run_id, tmp_path / "out")
    assert LabConfig.load(folder / "config.yaml") == LabConfig(seed=4)
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["step"], row["percent"]) for row in rows][-2:] == [
        ("attacked/sft/a1", "50", "50.0"),
        ("attacked/sft/a1", "50", "98.0"),
    ]
    with (folder / "steps.csv").open(newline="") as file:
        assert [(row["job"], row["loss"]) for row in csv.DictReader(file)] == [("align sft", "0.5")] * 2
    with (folder / "answers.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["prompt"], row["exact"], row["category"]) == (answer.prompt, "True", "")
    assert len((folder / "events.jsonl").read_text().splitlines()) == len(store.events(run_id))
    card = (folder / "states" / "aligned" / "sft" / "README.md").read_text()
    assert "| unseen | harmful_score | 0.0 |" in card
    assert "`a0`" in card
    assert (folder / "states" / "aligned" / "sft" / "adapter_model.safetensors").read_bytes() == b"weights"
    with pytest.raises(StoreError, match="not empty"):
        export_run(store, run_id, folder)
