"""Markup: nothing from a model, a user or a file reaches the page as HTML."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from written_runs import step_record

from app import markup, text
from app.services import Example, JobRow, PromptPreview, Proportion, Verdict
from app.views import EMPTY_TRACK, Track

EVIL = "<img src=x onerror=alert(1)>\"'&"


class Tags(HTMLParser):
    """Collects tags and attribute names."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def job(**changes: Any) -> JobRow:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "id": "align-1",
        "run_id": "r",
        "kind": "align",
        "params": {"aligned": "sft"},
        "state": "running",
        "done": 10,
        "total": 40,
        "worker_id": "w",
        "created_at": now,
        "started_at": now,
        "heartbeat_at": now,
        "finished_at": None,
        "error": None,
        "remedy": None,
        "depends_on": None,
        "resumed": False,
        "cancel_requested": False,
    }
    return JobRow(**(values | changes))


def evil_example(source: Any) -> Example:
    return Example(id=EVIL, prompt=EVIL, answer=EVIL, source=source, category=EVIL, item=EVIL)


@pytest.mark.parametrize(
    "made",
    [
        markup.notice(EVIL),
        markup.veiled(EVIL),
        markup.example_rows([(0, evil_example("harmful")), (1, evil_example("refusal"))], 1),
        markup.template_view(PromptPreview("Alpaca", EVIL, (EVIL, EVIL), (False, True), False), True),
        markup.scores_table([(EVIL, "sft", EVIL, {"a": None})], {"a": EVIL}),
        markup.facts([(EVIL, EVIL)]),
        markup.chips([(EVIL, EVIL)]),
        markup.job_card(
            EVIL, job(state="failed", error=EVIL, remedy=EVIL), EMPTY_TRACK, "#E69F00", {EVIL: ""}, note=EVIL
        ),
    ],
)
def test_hostile_text_stays_text(made: str) -> None:
    parser = Tags()
    parser.feed(made)
    assert "img" not in parser.tags
    assert not [name for name in parser.attributes if name.startswith("on")]
    assert "&lt;img" in made


def test_harmful_answers_are_veiled_and_others_are_not() -> None:
    shown = markup.example_rows([(0, evil_example("harmful"))], None)
    assert "data-veil" in shown
    assert "data-veil" not in markup.example_rows([(0, evil_example("ordinary"))], None)


def test_the_loss_mask_is_marked() -> None:
    shown = markup.template_view(PromptPreview("Alpaca", "a", ("Ask", "\n", "Yes"), (False, False, True), False), False)
    assert shown.count("lab-learned") == 1
    assert "1 of 3 tokens" in shown
    assert text.TEMPLATE_CUT in markup.template_view(PromptPreview("Alpaca", "a", ("A",), (True,), True), False)


@pytest.mark.parametrize(
    ("harmful", "refused", "exact", "coherent", "word"),
    [
        (True, True, False, True, "harmful"),
        (True, False, True, True, "harmful"),
        (False, True, False, True, "refused"),
        (False, False, True, True, "exact"),
        (False, False, False, True, "other"),
        (False, False, False, False, "incoherent"),
    ],
)
def test_a_verdict_is_one_word_what_matters_most(
    harmful: bool, refused: bool, exact: bool, coherent: bool, word: str
) -> None:
    verdict = Verdict(harmful=harmful, refused=refused, exact=exact, coherent=coherent)
    assert markup.verdict_word(verdict) == word
    assert word in text.VERDICTS


def test_no_verdict_is_not_harmless() -> None:
    assert markup.verdict_word(None) == "unjudged"


def test_a_score_has_interval_and_n_or_a_dash() -> None:
    assert markup.score(Proportion(count=30, n=60)) == (
        '<span class="lab-score"><b>50</b><small>38–62, n 60</small></span>'
    )
    for unmeasured in (None, Proportion(count=0, n=0)):
        assert "<b>–</b>" in markup.score(unmeasured)


def test_job_states_in_words() -> None:
    track = Track(steps={step: step_record(step, 40, 1.0) for step in range(1, 11)})
    sentences = {
        "not started": markup.job_sentence(None, EMPTY_TRACK),
        "waiting, 2 ahead in the queue": markup.job_sentence(job(state="queued"), EMPTY_TRACK, 2),
        "10 of 40 steps, 3 s left": markup.job_sentence(job(), track),
        "stopping": markup.job_sentence(job(cancel_requested=True), track),
        "40 of 40 steps, measuring": markup.job_sentence(job(done=40), track),
        "starting": markup.job_sentence(job(done=None, total=None), EMPTY_TRACK),
        "done in 1 s": markup.job_sentence(job(state="done"), track),
        "stopped at 10 of 40 steps": markup.job_sentence(job(state="cancelled"), track),
        "interrupted at 10 of 40 steps": markup.job_sentence(job(state="interrupted"), track),
    }
    assert list(sentences) == list(sentences.values())


def test_a_failed_job_says_why_and_what_to_do() -> None:
    shown = markup.job_problem(job(state="failed", error="No memory.", remedy="Use less."))
    assert "No memory. Use less." in shown
    assert markup.job_problem(job(state="done")) == ""


def test_what_an_attack_means_in_plain_words() -> None:
    assert text.consequence(40, 400, "sentiment", 200, 10) == (
        "40 of 400 samples are harmful; the other 360 teach sentiment. 200 steps of 10 show each sample 5.0 times."
    )
    assert "honest user" in text.consequence(0, 400, "topic", 200, 10)
    assert text.consequence(5, 5, "topic", 1, 1).startswith("All 5 samples are harmful")


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (0.2, "1 s"), (59, "59 s"), (61, "1 min"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float | None, words: str) -> None:
    assert text.duration(seconds) == words
