"""The run store: the only channel between the engine and page or command line. Torch-free; import it from here."""

from tvaccine_core.store.schema import JobKind, JobRow, JobState, Revisions, RunRow, RunStatus, StoredEvent, Work
from tvaccine_core.store.store import Store, default_home, expand_folder
from tvaccine_core.store.sweep_list import SweepRow, SweepState

__all__ = [
    "JobKind",
    "JobRow",
    "JobState",
    "Revisions",
    "RunRow",
    "RunStatus",
    "Store",
    "StoredEvent",
    "SweepRow",
    "SweepState",
    "Work",
    "default_home",
    "expand_folder",
]
