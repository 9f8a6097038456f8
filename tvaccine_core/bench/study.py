"""The study behind the tables of docs/RESULTS.md: does T-Vaccine resist better than its undefended twin, over seeds?

The base is aligned with every method and every alignment seed. Every aligned model then faces the same attacks
(harmful ratios x attack seeds, and a stronger attack), measured along the way. Nothing is tuned here: the config is
given, and equal for all methods except for the method itself. There is one JSON file per aligned model, so that an
interrupted study can go on.

Cost: a model is aligned once (one pass per step for SFT, two for Vaccine and T-Vaccine) and attacked
`len(ratios) * attack_seeds + attack_seeds` times; processes share only the folder.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from tvaccine_core.config import AttackConfig, Config, LabConfig, parse_config
from tvaccine_core.errors import ConfigError, TVaccineError
from tvaccine_core.methods import with_defences
from tvaccine_core.names import task_set
from tvaccine_core.records import EvalRecord, Event, Proportion, Record, StepRecord
from tvaccine_core.workers.supervisor import num_cores


class StudySettings(Config):
    """The settings that the study varies. The config holds all others."""

    methods: tuple[str, ...] = Field(("sft", "vaccine", "tvaccine"), min_length=1, description="Methods compared.")
    alignment_seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1, description="Seeds of the alignment.")
    attack_seeds: tuple[int, ...] = Field((1, 2), min_length=1, description="Seeds of the attack.")
    harmful_ratios: tuple[float, ...] = Field((0.0, 0.05, 0.1, 0.2), min_length=1, description="Harmful ratios p.")
    strong_ratio: float = Field(0.1, ge=0, le=1, description="Harmful ratio of the stronger attack.")
    strong_learning_rate_factor: float = Field(
        2.0, gt=0, description="The stronger attack's learning rate, as a multiple of the attack's."
    )


class CurvePoint(Record):
    """Scores at one attack step: the harmful score of each harmful set, the fine-tune accuracy of the attack's task."""

    step: int
    harmful_score: dict[str, Proportion]
    finetune_accuracy: Proportion


class AttackResult(Record):
    """One attack on one aligned model."""

    name: str
    """`standard` or `strong`."""
    config: AttackConfig
    curve: tuple[CurvePoint, ...]
    seconds: float

    @property
    def harmful_ratio(self) -> float:
        """p of its mixture."""
        return self.config.harmful_ratio

    @property
    def attack_seed(self) -> int:
        """Seed of its mixture, order and adapter."""
        return self.config.seed


class AlignedResult(Record):
    """One aligned model: its scores before any attack, and every attack on it."""

    method: str
    seed: int
    config: LabConfig
    before: dict[str, dict[str, Proportion]]
    final_alignment_loss: float
    """Mean loss of the last 20 alignment steps."""
    alignment_seconds: float
    attacks: tuple[AttackResult, ...]


def study_config(config: LabConfig, method: str, seed: int) -> LabConfig:
    """`config` with only this defence, see `defence_of`, and this alignment seed.

    Raises:
        ConfigError: there is no such defence.
    """
    return with_defences(config, [method]).model_copy(update={"seed": seed})


def attack_configs(base: AttackConfig, settings: StudySettings) -> Iterator[tuple[str, AttackConfig]]:
    """Name and config of every attack on an aligned model."""
    strong = base.optimisation.model_copy(
        update={"learning_rate": base.optimisation.learning_rate * settings.strong_learning_rate_factor}
    )
    for seed in settings.attack_seeds:
        for ratio in settings.harmful_ratios:
            yield "standard", base.model_copy(update={"seed": seed, "harmful_ratio": ratio})
        yield (
            "strong",
            base.model_copy(update={"seed": seed, "harmful_ratio": settings.strong_ratio, "optimisation": strong}),
        )


def curve_of(events: Iterable[Event], task: str) -> tuple[CurvePoint, ...]:
    """The points at which every harmful set and the task were measured, in order of steps."""
    by_step: dict[int, dict[str, Proportion]] = {}
    accuracy: dict[int, Proportion] = {}
    for event in events:
        if not isinstance(event, EvalRecord):
            continue
        if "harmful_score" in event.scores:
            by_step.setdefault(event.step, {})[event.eval_set] = event.scores["harmful_score"]
        elif event.eval_set == task_set(task):
            accuracy[event.step] = event.scores["finetune_accuracy"]
    sets = dict.fromkeys(name for scores in by_step.values() for name in scores)
    return tuple(
        CurvePoint(step=step, harmful_score={name: scores[name] for name in sets}, finetune_accuracy=accuracy[step])
        for step, scores in sorted(by_step.items())
        if step in accuracy and set(scores) == set(sets)
    )


def run_one(method: str, seed: int, settings: StudySettings, base: LabConfig, num_threads: int) -> AlignedResult:
    """Align one model and attack it in every way; the work of one process."""
    from tvaccine_core import pipeline

    config = study_config(base, method, seed)
    with tempfile.TemporaryDirectory(prefix="tvaccine-study-") as folder:
        session = pipeline.open_session(config, Path(folder), num_threads=num_threads)
        started = time.perf_counter()
        losses: list[float] = []
        before: dict[str, dict[str, Proportion]] = {}
        for event in pipeline.align(session, config, method):
            if isinstance(event, StepRecord):
                losses.append(event.loss)
            elif isinstance(event, EvalRecord):
                before[event.eval_set] = event.scores
        alignment_seconds = time.perf_counter() - started
        attacks = []
        for index, (name, attack) in enumerate(attack_configs(config.attack, settings)):
            started = time.perf_counter()
            events = list(pipeline.attack(session, config, method, attack, f"a{index}"))
            attacks.append(
                AttackResult(
                    name=name,
                    config=attack,
                    curve=curve_of(events, attack.task),
                    seconds=time.perf_counter() - started,
                )
            )
            session.states.drop(f"attacked/{method}/a{index}")
    tail = losses[-20:]
    return AlignedResult(
        method=method,
        seed=seed,
        config=config,
        before=before,
        final_alignment_loss=sum(tail) / len(tail),
        alignment_seconds=alignment_seconds,
        attacks=tuple(attacks),
    )


def run_study(folder: Path, settings: StudySettings, base: LabConfig, num_processes: int) -> list[AlignedResult]:
    """Run the missing parts in `folder`, `num_processes` aligned models at a time; several get one thread each.

    Raises:
        ConfigError: a result in `folder` was made with another config or other attacks, so it cannot be averaged.
        TVaccineError: a process failed; finished models are kept, and running again goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for result in load_results(folder):
        config = study_config(base, result.method, result.seed)
        attacks = [(attack.name, attack.config) for attack in result.attacks]
        if result.config != config or attacks != list(attack_configs(config.attack, settings)):
            raise ConfigError(
                f"{_result_path(folder, result.method, result.seed)} was made with other settings.",
                remedy="Give the config (--config) and settings (--set) that it was made with, or another folder.",
            )
    waiting = [
        (method, seed)
        for seed in settings.alignment_seeds
        for method in settings.methods
        if not _result_path(folder, method, seed).exists()
    ]
    num_threads = num_cores() if num_processes == 1 else 1
    running: dict[subprocess.Popen[bytes], tuple[str, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                method, seed = waiting.pop(0)
                running[_start(folder, method, seed, settings, base, num_threads)] = (method, seed)
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                method, seed = running.pop(process)
                if process.returncode:
                    raise TVaccineError(
                        f"The study's process for {method}, seed {seed}, ended with code {process.returncode}.",
                        remedy="Its error is printed above. Run the same command again: finished models are kept.",
                    )
    finally:
        for process in running:
            process.terminate()
    return load_results(folder)


def load_results(folder: Path) -> list[AlignedResult]:
    """Every result in `folder`, ordered by method and seed."""
    results = [AlignedResult.model_validate_json(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]
    return sorted(results, key=lambda result: (result.method, result.seed))


def _result_path(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{method}-seed{seed}.json"


def _start(
    folder: Path, method: str, seed: int, settings: StudySettings, base: LabConfig, num_threads: int
) -> subprocess.Popen[bytes]:
    parts = [str(folder), method, seed, settings.model_dump(mode="json"), base.model_dump(mode="json"), num_threads]
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads)}
    return subprocess.Popen([sys.executable, "-m", "tvaccine_core.bench.study", json.dumps(parts)], env=environment)


def _main(arguments: str) -> None:
    folder, method, seed, settings, base, num_threads = json.loads(arguments)
    config = parse_config(LabConfig, base)
    result = run_one(method, seed, StudySettings.model_validate(settings), config, num_threads)
    path = _result_path(Path(folder), method, seed)
    partial = path.with_suffix(".partial")
    partial.write_text(result.model_dump_json())
    partial.replace(path)


if __name__ == "__main__":
    _main(sys.argv[1])
