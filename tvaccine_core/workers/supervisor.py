"""Starts worker processes, restarts dead ones, and ends them with its own process. Torch-free.

One supervisor at a time works on a data folder: it holds a lock file. Another (of a second app, or of `demo` beside an
app) stands by: the first one's workers do its jobs, and it takes over when the first ends. So two programs never train
twice as many models as the machine should. A worker's standard input is a pipe from here: when this process dies,
in any way, the workers see the pipe close, finish their step and stop. A worker that is asked to stop a job, and does
not within a stated time, is ended and replaced.
"""

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tvaccine_core.errors import StoreError, TVaccineError
from tvaccine_core.records import StepRecord
from tvaccine_core.store import JobRow, Store

WATCH_EVERY_S = 0.2
REAP_EVERY_S = 2.0
LOOK_EVERY_S = 0.5
"""Pause between two looks for workers that do not stop a job."""
CANCEL_WITHIN_S = 60.0
"""A worker that has not stopped a job this long after the request is ended: the steps since the job's last checkpoint
are lost. A job stops between two steps, so a job with long steps gets the time of `CANCEL_STEPS` steps."""
CANCEL_STEPS = 3
STABLE_AFTER_S = 60.0
"""A worker that lived this long is restarted without delay."""
MAX_BACKOFF_S = 30.0
LAUNCHER_VARIABLES = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One worker's place: its process, and the earliest start of the next process."""

    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    quick_deaths: int = 0
    start_after: float = 0.0
    exit_codes: list[int] = field(default_factory=list)
    asked_at: dict[str, float] = field(default_factory=dict)
    """Job -> when it was first seen to be asked to stop; only jobs that have not stopped yet."""


class Supervisor:
    """`num_workers` worker processes on the store in `home`, from `start` to `stop` (or as a context manager).

    Args:
        num_workers: None: two on a CPU with two cores or more, so that a method and its twin align side by side;
            else one.
        num_threads: torch threads per worker; None divides the cores among the workers.
        gpus: the GPUs of the workers in turn, as CUDA numbers them; None leaves all GPUs to each.
        command: the command of a worker; None is this package's `worker` command.
        cancel_within_s: a worker that has not stopped a job this long after the request is ended.
    """

    def __init__(
        self,
        home: Path,
        num_workers: int | None = None,
        *,
        num_threads: int | None = None,
        gpus: Sequence[int] | None = None,
        command: Sequence[str] | None = None,
        cancel_within_s: float = CANCEL_WITHIN_S,
    ) -> None:
        self.store = Store(home)
        self.num_workers = default_num_workers() if num_workers is None else num_workers
        self.num_threads = num_threads or max(1, num_cores() // max(1, self.num_workers))
        self.cancel_within_s = cancel_within_s
        self._gpus = gpus
        self._command = tuple(command or self._worker_command())
        self._slots = [_Slot() for _ in range(self.num_workers)]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the workers, or stand by if another supervisor works on this folder."""
        self._stopping.clear()
        self._tend()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float = 15.0) -> None:
        """End the workers: they get `grace_s` to finish a step and write a checkpoint, then they are killed."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            _close_input(process)  # works like a signal, except while a worker still imports
            if sys.platform != "win32":
                process.terminate()
        deadline = time.monotonic() + grace_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker %d did not end in %.0f s and is killed", process.pid, grace_s)
                _kill(process)
        for slot in self._slots:
            slot.process = None
        if running:
            self.store.reap()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def standing_by(self) -> bool:
        """True while another supervisor's workers do the jobs of this folder."""
        return self._lock is None

    def num_alive(self) -> int:
        """Number of own worker processes that run now."""
        return sum(slot.process is not None and slot.process.poll() is None for slot in self._slots)

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [slot.process.pid for slot in self._slots if slot.process and slot.process.poll() is None]

    def deaths_in_a_row(self) -> int:
        """Most deaths of one worker in a row, each soon after its start; 0 if all workers live."""
        return max((slot.quick_deaths for slot in self._slots), default=0)

    def last_deaths(self) -> list[str]:
        """A sentence for the user, with the log's path, for each worker that died and has not lived long since."""
        return [
            f"A worker ended unexpectedly ({_reason(slot.exit_codes[-1])}), {slot.quick_deaths} times in a row. "
            f"Its log: {self.log_path(index)}"
            for index, slot in enumerate(self._slots)
            if slot.quick_deaths
        ]

    def log_path(self, index: int) -> Path:
        """The file of worker `index`'s output."""
        return self.store.home / "log" / f"worker-{index}.log"

    def _watch(self) -> None:
        next_reap = next_look = 0.0
        while not self._stopping.wait(WATCH_EVERY_S):
            try:
                died = self._tend()
                if self._lock is not None and (died or time.monotonic() >= next_reap):
                    for job in self.store.reap():
                        log.warning("%s of run %s is %s: its worker died", job.title, job.run_id, job.state)
                    next_reap = time.monotonic() + REAP_EVERY_S
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_EVERY_S
                    self._end_the_deaf()
            except StoreError as error:  # a full disk may be freed; workers must be watched meanwhile
                log.error("%s %s", error, error.remedy)
        self.store.close()

    def _tend(self) -> bool:
        """Start missing workers; True if a worker was found dead."""
        if self._lock is None:
            self._lock = try_lock(self.store.home / "supervisor.lock")
            if self._lock is None:
                return False
        died = False
        for index, slot in enumerate(self._slots):
            now = time.monotonic()
            if slot.process is not None and (code := slot.process.poll()) is not None:
                died = True
                _close_input(slot.process)
                slot.process = None
                slot.exit_codes.append(code)
                slot.quick_deaths = slot.quick_deaths + 1 if now - slot.started_at < STABLE_AFTER_S else 1
                slot.start_after = now + min(MAX_BACKOFF_S, 0.25 * 2**slot.quick_deaths)
                log.warning("worker %d ended (%s)", index, _reason(code))
            elif slot.process is not None and now - slot.started_at >= STABLE_AFTER_S:
                slot.quick_deaths = 0
            if slot.process is None and now >= slot.start_after:
                slot.process = self._spawn(index)
                slot.started_at = now
        return died

    def _end_the_deaf(self) -> None:
        """End each worker that did not stop a job in time; only this job is cancelled."""
        for index, slot in enumerate(self._slots):
            if slot.process is None:
                continue
            now, held = time.monotonic(), self.store.held_by(slot.process.pid)
            asked = [job for job in held if job.cancel_requested]
            slot.asked_at = {job.id: slot.asked_at.get(job.id, now) for job in asked}
            late = [job for job in asked if self._is_late(job, now - slot.asked_at[job.id])]
            if late:
                log.warning("worker %d does not stop %s; it is ended", index, " or ".join(job.id for job in late))
                _kill(slot.process)
                _close_input(slot.process)
                slot.process = None
                self._give_up(late, held)

    def _is_late(self, job: JobRow, waited_s: float) -> bool:
        return waited_s > self.cancel_within_s and waited_s > CANCEL_STEPS * self._step_s(job)

    def _step_s(self, job: JobRow) -> float:
        """Average seconds per step of the job; 0 while unknown."""
        recent = self.store.events(job.run_id, self.store.last_seq(job.id) - 1000, ["step"], job.id)
        last = recent[-1].event if recent else None
        return last.elapsed_s / last.step if isinstance(last, StepRecord) else 0.0

    def _give_up(self, late: Sequence[JobRow], held: Sequence[JobRow]) -> None:
        """Record the end of an ended worker's jobs; jobs that nobody asked to stop go on in another worker."""
        for job in late:
            self.store.finish(
                job.id,
                "cancelled",
                TVaccineError(
                    f"`{job.title}` did not stop within {self.cancel_within_s:g} s, so its worker was ended.",
                    remedy="Resume it: it goes on from its last checkpoint, or from its start if it has none. If it "
                    "hangs again, start a run with another model or other settings.",
                ),
                worker_id=job.worker_id,
            )
        self.store.reap()
        for job in map(self.store.job, {job.id for job in held if not job.cancel_requested}):
            if job.state == "interrupted":
                self.store.resume(job.id)

    def _spawn(self, index: int) -> subprocess.Popen[bytes]:
        path = self.log_path(index)
        first = self._slots[index].started_at == 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb" if first else "ab") as output:
                return subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(index),
                    start_new_session=True,  # the parent handles Ctrl-C
                )
        except OSError as error:
            raise StoreError(
                f"Cannot start a worker process: {error}", remedy=f"Check that {path.parent} can be written."
            ) from error

    def _environment(self, index: int) -> dict[str, str]:
        # The package is found from wherever the app was started.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        # A launcher's variables for several processes must not reach a worker, which is alone.
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        if self._gpus:
            inherited["CUDA_VISIBLE_DEVICES"] = str(self._gpus[index % len(self._gpus)])
        return {
            **inherited,
            "OMP_NUM_THREADS": str(self.num_threads),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
        }

    def _worker_command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "tvaccine_core",
            "worker",
            "--supervised",
            f"--data-dir={self.store.home}",
            f"--threads={self.num_threads}",
        ]


def num_cores() -> int:
    """Cores that this process may use: its affinity and, in a container, its share (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores  # no cgroup v2, so no share
    return cores


def default_num_workers() -> int:
    """One with a GPU (two workers would halve its memory) or with a single core, else two."""
    has_gpu = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    return 1 if has_gpu or num_cores() < 2 else 2


def try_lock(path: Path) -> IO[bytes] | None:
    """An open file that holds the lock until it is closed or its process ends; None if another process has it."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}",
            remedy="Choose a folder you may write to with --data-dir or TVACCINE_HOME.",
        ) from error
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK):
            return None
        raise StoreError(
            f"{path} cannot be locked: {error.strerror or error}",
            remedy="Choose a folder on a file system that has locks, with --data-dir or TVACCINE_HOME.",
        ) from error
    return file


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    if -code == 9:
        return "killed by signal 9; perhaps the machine ran out of memory"
    if sys.platform != "win32" and -code == signal.SIGALRM:
        return "it gave no sign of life, so it was ended; its log says where it was"
    return f"killed by signal {-code}"
