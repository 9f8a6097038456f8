"""One lab: its runs, its work, questions to its models, and its permissions. Torch-free."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.services.sweeps import LabSweeps
from tvaccine_core import orders
from tvaccine_core.config import AttackConfig, LabConfig, ModelConfig
from tvaccine_core.errors import ConfigError, DataError
from tvaccine_core.orders import latest
from tvaccine_core.plain_text import check_prompt
from tvaccine_core.records import AnswerRecord, GeneratedAnswer, StateRecord, StepRecord
from tvaccine_core.store import JobKind, JobRow, RunRow, Store
from tvaccine_core.store.export import changed_settings, repeatable
from tvaccine_core.store.recorded import RECORDINGS, SUFFIX, drop_others, recorded_id, take

FIRST_SHOWN = recorded_id(RECORDINGS / f"sandbox-intact{SUFFIX}")
"""The recorded run that visitors see before they open one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Permissions:
    """What visitors of the page may make this machine do. Set when the server starts, never by a request."""

    own_models: bool = True
    """Load any model of this machine or of the hub; if not, the sandbox's, and models that were run here before."""
    remote_code: bool = False
    """Run the Python code that comes with a model."""


class Lab:
    """The lab in one data folder, for the screens. Threads may share it.

    Every method may raise a `TVaccineError` whose `remedy` is meant for the user.
    """

    def __init__(self, home: Path, permissions: Permissions | None = None) -> None:
        self.store = Store(home)
        self.permissions = permissions or Permissions()
        self.sweeps = LabSweeps(self.store, self.permit)

    def permit(self, model: ModelConfig) -> None:
        """Raise `ConfigError` if visitors may not load `model`."""
        if model.trust_remote_code and not self.permissions.remote_code:
            raise ConfigError(
                "trust_remote_code is on, but this lab's page runs no code that comes with a model.",
                remedy="Turn it off; or read the code, then start the lab with `python app.py --trust-remote-code`.",
            )
        if model.name != ModelConfig().name and not self.permissions.own_models and not self._was_run(model):
            raise ConfigError(
                f"This lab's page loads only the sandbox's model and the models of its runs, not {model.name[:100]}.",
                remedy="Choose a sandbox preset; or start the lab with `python app.py --own-models`.",
            )

    def _was_run(self, model: ModelConfig) -> bool:
        def uses(run: RunRow) -> bool:
            try:
                return run.config.model == model
            except ConfigError:  # made by another version
                return False

        return any(uses(run) for run in self.runs())

    # Runs

    def take_recordings(self, folder: Path = RECORDINGS) -> list[str]:
        """Put the recorded runs that ship with the lab into the store; what cannot be read is left out and logged."""
        taken: list[str] = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                taken.append(take(self.store, path))
            except DataError as error:
                log.warning("%s %s", error, error.remedy)
        drop_others(self.store, taken)
        return taken

    def runs(self) -> list[RunRow]:
        """Every run, newest first."""
        return self.store.runs()

    def run(self, run_id: str) -> RunRow:
        """One run."""
        return self.store.run(run_id)

    def repeatable(self, run_id: str) -> tuple[LabConfig, list[dict[str, str]]]:
        """Settings that repeat a run: its config with the first attack, and each later attack's different settings."""
        config, attacks = repeatable(self.store, run_id)
        return config, [changed_settings(attack, config.attack) for attack in list(attacks.values())[1:]]

    def delete_run(self, run_id: str) -> None:
        """Delete the run, its waiting jobs and its files. Raises `RunBusyError` while one of its jobs runs."""
        self.store.delete_run(run_id)

    # Work

    def start_alignment(self, config: LabConfig, name: str | None = None) -> str:
        """Make a run and queue its alignments, then the measurement of the base. Returns the run's id.

        Raises:
            RunBusyError: a run of the same config has work queued or running; the error names it.
            ConfigError, DataError, ModelError: see `orders.check` and `permit`.
        """
        self.permit(config.model)
        return orders.start_run(self.store, config, name).run_id

    def start_attack(self, run_id: str, attack: AttackConfig, defences: Sequence[str] = ()) -> str:
        """Queue the same attack on each defence, by default on all. Returns the attack's id.

        Raises:
            RunBusyError, StoreError, ConfigError, DataError: see `orders.start_attack` and `permit`.
        """
        self.permit(self.run(run_id).config.model)
        return orders.start_attack(self.store, run_id, attack, defences).attack_id

    def judge(self, run_id: str, key: str) -> str:
        """Let a second judge read the run's saved answers. Returns the job's id.

        Raises:
            ConfigError, StoreError, RunBusyError: see `orders.judge`.
        """
        return orders.judge(self.store, run_id, key).jobs[0]

    def stop(self, run_id: str, kinds: Collection[JobKind]) -> int:
        """Ask the run's jobs of these kinds to stop; returns how many."""
        return orders.stop(self.store, run_id, kinds)

    def resume(self, run_id: str, kinds: Collection[JobKind]) -> int:
        """Queue failed and stopped jobs again, alignments first; returns their number. Raises as `permit` does."""
        self.permit(self.run(run_id).config.model)
        return len(orders.resume(self.store, run_id, kinds))

    def queue_position(self, job_id: str) -> int | None:
        """Number of jobs before a waiting job; None if it does not wait."""
        return self.store.queue_position(job_id)

    # Questions

    def ask(self, run_id: str, prompt: str, states: Sequence[str], owner: str, max_new_tokens: int) -> str:
        """Queue a prompt for several model states and drop the owner's unanswered prompts. Returns the job's id.

        Raises:
            DataError: the prompt is empty, longer than 2,000 characters, or not valid Unicode.
            ConfigError: see `permit`.
        """
        self.permit(self.run(run_id).config.model)
        prompt = check_prompt(prompt)
        for job in self.store.jobs(run_id, states=("queued", "running")):
            if job.kind == "generate" and job.params.get("owner") == owner:
                self.store.cancel(job.id)
        params = {"prompt": prompt, "states": list(states), "max_new_tokens": max_new_tokens, "owner": owner}
        return self.store.enqueue(run_id, "generate", params)

    def recorded_answers(self, run_id: str, prompt: str) -> list[AnswerRecord]:
        """The saved answers to an evaluation prompt, one per model, each after its last step."""
        found: dict[str, GeneratedAnswer] = {}
        page = 0
        while batch := self.store.answers(run_id, limit=2000, offset=page):
            page += len(batch)
            for answer in batch:
                if answer.prompt == prompt and (answer.state not in found or answer.step >= found[answer.state].step):
                    found[answer.state] = answer
        return [
            AnswerRecord(
                state=answer.state,
                state_hash=answer.state_hash,
                prompt=prompt,
                text=answer.text,
                done=True,
                verdict=answer.verdict,
            )
            for answer in found.values()
        ]

    def answer_records(self, question: JobRow) -> list[AnswerRecord]:
        """The answers to a question so far, in the order in which they changed."""
        stored = self.store.events(question.run_id, kinds=("answer",), job_id=question.id)
        return [item.event for item in stored if isinstance(item.event, AnswerRecord)]

    def states(self, run_id: str) -> list[str]:
        """Saved models of the run, oldest first."""
        stored = self.store.events(run_id, kinds=("state",))
        return [item.event.state for item in stored if isinstance(item.event, StateRecord) and item.event.path]

    # Time

    def seconds_a_step(self, method: str, like: LabConfig) -> float | None:
        """Seconds per alignment step of `method` in the newest run here with the model and batch of `like`."""
        for run in self.runs()[:20]:
            if run.recorded or not _cost_alike(run, like):
                continue
            key = next((key for key, used in run.config.alignments().items() if used.name == method), None)
            job = latest(self.store.jobs(run.id), "align").get(key) if key else None
            if job is None or job.state != "done":
                continue
            last = self.store.events(run.id, kinds=("step",), job_id=job.id)[-1:]
            for event in last:
                if isinstance(event.event, StepRecord) and event.event.step:
                    return event.event.elapsed_s / event.event.step
        return None


def _cost_alike(run: RunRow, other: LabConfig) -> bool:
    """True if a step of the run costs about as much as a step of `other`."""
    try:
        one = run.config
    except ConfigError:  # made by another version
        return False
    ours, theirs = one.alignment.optimisation, other.alignment.optimisation
    sizes = [(o.batch_size, o.accumulation, o.max_length) for o in (ours, theirs)]
    return one.model == other.model and sizes[0] == sizes[1]
