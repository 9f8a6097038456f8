"""News of a run: what a poll costs, that all viewers share one drawing, and that no viewer misses or keeps anything."""

import json
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from built_page import build_page
from starlette.applications import Starlette
from starlette.testclient import TestClient
from written_runs import alignment_events, small_config, step_record

from app import news as news_module
from app.glance import Glance, remembered
from app.news import Drawing, News, news_route
from app.page import Page
from app.services import Lab, StepRecord
from app.views import Views


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float = 10.0) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab for all tests of this file, each with runs of its own."""
    return Lab(tmp_path_factory.mktemp("news") / "home")


@pytest.fixture(scope="module")
def page(lab: Lab) -> Page:
    return build_page(lab)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> Iterator[Clock]:
    """At the start of a test every board is old; at its end nothing is left to do."""
    CLOCK.wait(1000.0)
    monkeypatch.setattr(news_module, "time", SimpleNamespace(monotonic=CLOCK.monotonic))
    yield CLOCK
    for run in lab.runs():
        end_all(lab, run.id)


@pytest.fixture
def running(lab: Lab) -> tuple[str, str]:
    """A run that trains: its id, and the id of its job."""
    run_id = lab.start_alignment(small_config(steps=60))
    job = lab.store.claim("test")
    assert job is not None
    lab.store.append(job.id, [step_record(1, 40, 2.0)])
    return run_id, job.id


def ask(news: News, run_id: str, seen: str = "", attack: str = "") -> dict[str, Any]:
    """News that there are."""
    body = news.poll(run_id, attack, seen)
    assert body is not None, "no news"
    return json.loads(body)


@pytest.fixture
def statements(lab: Lab) -> Iterator[list[str]]:
    """What this thread's connection to the store executes from now on."""
    with lab.store._db.read() as connection:
        pass
    found: list[str] = []
    connection.set_trace_callback(found.append)
    yield found
    connection.set_trace_callback(None)


def test_a_poll_with_nothing_new_is_one_select_by_key(
    page: Page, lab: Lab, running: tuple[str, str], statements: list[str], clock: Clock
) -> None:
    seen = ask(page.news, running[0])["seen"]
    clock.wait()
    statements.clear()
    assert page.news.poll(running[0], "", seen) is None
    selects = [statement for statement in statements if statement.lstrip().upper().startswith("SELECT")]
    assert len(selects) == 1
    assert set(statements) - set(selects) == {"BEGIN", "COMMIT"}
    with lab.store._db.read() as db:
        plan = [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {selects[0]}")]
    assert plan
    assert all("SEARCH" in step for step in plan), plan


def test_what_is_drawn_is_drawn_and_serialised_once_for_all_viewers(
    lab: Lab, running: tuple[str, str], clock: Clock
) -> None:
    run_id, job_id = running
    drawn: list[str] = []

    def counted(name: str) -> Callable[[Glance], str]:
        return lambda _: drawn.append(name) or f"{name} {len(drawn)}"

    news = News(lab, Views(lab), lambda _: "")
    news.add(Drawing("loss", lambda glance: glance.stamp("align"), counted("loss")))
    news.add(Drawing("drift", lambda glance: glance.stamp("drift"), counted("drift")))
    first = [news.poll(run_id, "", "") for _ in range(30)]
    assert drawn == ["loss", "drift"]
    assert all(body is first[0] for body in first), "the same bytes, not equal ones"
    seen = ask(news, run_id)["seen"]
    clock.wait()
    lab.store.append(job_id, [step_record(2, 40, 1.0)])
    second = [news.poll(run_id, "", seen) for _ in range(30)]
    assert drawn == ["loss", "drift", "loss"]
    assert all(body is second[0] for body in second)
    assert json.loads(second[0] or b"")["values"] == {"loss": "loss 3"}


def test_a_step_changes_loss_and_progress_only(page: Page, lab: Lab, running: tuple[str, str], clock: Clock) -> None:
    run_id, job_id = running
    first = ask(page.news, run_id)
    assert set(first["values"]) == {drawing.name for drawing in page.news.drawings}
    clock.wait()
    lab.store.append(job_id, [step_record(2, 40, 1.0)])
    lab.store.heartbeat(job_id, (2, 40))
    second = ask(page.news, run_id, first["seen"])
    assert set(second["values"]) == {"align-cards", "loss", "rail"}
    assert second["look"] == first["look"], "no button changed"


def test_another_name_reaches_the_rail_and_the_list(page: Page, lab: Lab, done_run: str, clock: Clock) -> None:
    first = ask(page.news, done_run, attack="a1")
    clock.wait()
    lab.store.rename_run(done_run, "another name")
    second = ask(page.news, done_run, first["seen"], "a1")
    assert set(second["values"]) == {"rail", "runs-table"}
    assert second["values"]["rail"]["run"]["name"] == "another name"


def test_the_page_rests_when_nothing_runs_and_not_before(
    page: Page, lab: Lab, done_run: str, running: tuple[str, str], clock: Clock
) -> None:
    assert ask(page.news, done_run)["more"] is False
    assert ask(page.news, "")["more"] is False, "no run is open"
    assert ask(page.news, running[0])["more"] is True
    clock.wait()
    end_all(lab, running[0])
    assert ask(page.news, running[0])["more"] is False


def test_a_young_board_is_not_drawn_again_and_its_viewers_ask_again(
    page: Page, lab: Lab, done_run: str, clock: Clock
) -> None:
    seen = ask(page.news, done_run)["seen"]
    attack = lab.run(done_run).config.attack.model_copy(update={"harmful_ratio": 0.3})
    lab.start_attack(done_run, attack)
    young = ask(page.news, done_run, seen)
    assert (young["values"], young["more"]) == ({}, True), "it shows a run at rest, which is not so any more"
    clock.wait(news_module.MIN_AGE_S)
    assert "rail" in ask(page.news, done_run, seen)["values"]


def test_a_slow_drawing_waits_and_comes_without_anything_new(lab: Lab, running: tuple[str, str], clock: Clock) -> None:
    run_id, job_id = running
    news = News(lab, Views(lab), lambda _: "")
    news.add(Drawing("loss", lambda glance: glance.stamp("align"), lambda glance: steps(glance), every_s=3.0))
    first = ask(news, run_id)
    lab.store.append(job_id, [step_record(2, 40, 1.0)])
    clock.wait(1.0)
    assert news.poll(run_id, "", first["seen"]) is None
    clock.wait(2.0)
    second = ask(news, run_id, first["seen"])
    assert (first["values"], second["values"]) == ({"loss": 1}, {"loss": 2})


def test_nothing_waits_when_the_run_ends(lab: Lab, running: tuple[str, str], clock: Clock) -> None:
    run_id, job_id = running
    news = News(lab, Views(lab), lambda _: "")
    news.add(Drawing("loss", lambda glance: glance.stamp("align"), lambda glance: steps(glance), every_s=3600.0))
    seen = ask(news, run_id)["seen"]
    lab.store.append(job_id, [step_record(2, 40, 1.0)])
    end_all(lab, run_id)
    clock.wait(news_module.MIN_AGE_S)
    last = ask(news, run_id, seen)
    assert (last["values"], last["more"]) == ({"loss": 2}, False)


def end_all(lab: Lab, run_id: str) -> None:
    """Stop what waits and what runs, as a worker would."""
    for job in lab.store.jobs(run_id, states=("queued", "running")):
        lab.store.cancel(job.id)
        if job.state == "running":
            lab.store.finish(job.id, "cancelled")


def steps(glance: Glance) -> int:
    """Steps known of all jobs."""
    return sum(len(track.steps) for track in glance.view.tracks.values()) if glance.view else 0


def test_news_one_after_the_other_are_the_page_asked_for_at_once(
    page: Page, lab: Lab, running: tuple[str, str], clock: Clock
) -> None:
    """Whatever a viewer slept through, and whenever they asked: at the end all see the same."""
    run_id, job_id = running
    chance = random.Random(0)
    viewers: list[dict[str, Any]] = [{"seen": "", "values": {}} for _ in range(6)]
    events = [event for event in alignment_events("sft", 40) if not isinstance(event, StepRecord) or event.step > 1]
    while events:
        count = chance.randint(1, 4)
        lab.store.append(job_id, events[:count])
        del events[:count]
        clock.wait(chance.choice([0.1, 0.6, 3.0]))
        for viewer in chance.sample(viewers, 3):
            if body := page.news.poll(run_id, "", viewer["seen"]):
                viewer["seen"] = json.loads(body)["seen"]
                viewer["values"] |= json.loads(body)["values"]
    clock.wait()
    whole = ask(page.news, run_id)["values"]
    for viewer in viewers:
        if body := page.news.poll(run_id, "", viewer["seen"]):
            viewer["values"] |= json.loads(body)["values"]
        assert viewer["values"] == whole


def test_a_viewer_of_another_board_gets_everything(page: Page, lab: Lab, done_run: str) -> None:
    whole = ask(page.news, done_run)
    restarted = News(lab, Views(lab), lambda _: "")
    for drawing in page.news.drawings:
        restarted.add(drawing)
    for seen in ("nonsense", "00000000.1", f"{whole['seen']}x", ".", whole["seen"].replace(".", ".-")):
        assert set(ask(restarted, done_run, seen)["values"]) == set(whole["values"])


def test_look_says_when_gradio_has_something_to_refresh(page: Page, lab: Lab, done_run: str, clock: Clock) -> None:
    memory = remembered({"run": done_run})
    refreshed = page._refresh(memory, {})[1]["watched"]
    assert ask(page.news, done_run, attack="a1")["look"] == refreshed["look"]
    clock.wait()
    lab.start_attack(done_run, lab.run(done_run).config.attack.model_copy(update={"harmful_ratio": 0.3}))
    changed = ask(page.news, done_run, attack="a1")["look"]
    assert changed != refreshed["look"], "another attack, to be chosen and to be stopped"
    again = page._refresh(memory | {"attack": "a1"}, {})[1]["watched"]
    assert changed == again["look"]


def test_a_run_that_is_gone_is_told_from_one_without_news(
    page: Page, lab: Lab, done_run: str, running: tuple[str, str], clock: Clock
) -> None:
    seen = ask(page.news, done_run)["seen"]
    clock.wait()
    lab.delete_run(done_run)
    assert ask(page.news, done_run, seen) == {"gone": True, "more": False}
    for no_run in ("nobody", "../..", "\x00", "x" * 5000, "' OR 1=1 --", "ключ"):
        assert ask(page.news, no_run) == {"gone": True, "more": False}
    assert "gone" not in ask(page.news, running[0])


def test_many_runs_do_not_fill_the_memory(page: Page, monkeypatch: pytest.MonkeyPatch, done_run: str) -> None:
    monkeypatch.setattr(news_module, "MAX_BOARDS", 2)
    for attack in ("a1", "a2", "a3", "a4"):
        ask(page.news, done_run, attack=attack)
    assert len(page.news._boards) == 2


def test_numbers_that_json_lacks_do_not_break_the_page(lab: Lab, running: tuple[str, str]) -> None:
    news = News(lab, Views(lab), lambda _: "")
    news.add(Drawing("loss", lambda _: 0, lambda _: [float("nan"), float("inf"), 1.5]))
    assert ask(news, running[0])["values"] == {"loss": [None, None, 1.5]}


def test_the_route_answers_a_browser(page: Page, lab: Lab, done_run: str) -> None:
    client = TestClient(Starlette(routes=[news_route(page.news, lab.store.home)]))
    first = client.get("/lab/news", params={"run": done_run, "attack": "a1", "seen": ""})
    assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
    assert first.headers["cache-control"] == "no-store"
    second = client.get("/lab/news", params={"run": done_run, "attack": "a1", "seen": first.json()["seen"]})
    assert (second.status_code, second.content) == (204, b"")
    gone = client.get("/lab/news", params={"run": "../nobody"})
    assert (gone.status_code, gone.json()["gone"]) == (200, True)
    assert client.get("/lab/news").json()["values"]["rail"]["run"] is None


def test_a_drawing_that_fails_takes_no_other_away(
    lab: Lab, running: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def burst(glance: Glance) -> str:
        raise StopIteration

    news = News(lab, Views(lab), lambda glance: "look")
    news.add(Drawing("broken", lambda glance: 1, burst))
    news.add(Drawing("whole", lambda glance: 1, lambda glance: "here"))
    assert ask(news, running[0])["values"] == {"whole": "here"}
    assert "broken cannot be drawn" in caplog.text
