"""The errors a user can meet. Each says what was given, what is allowed, and in `remedy` what to do next."""


class TVaccineError(Exception):
    """Base of every error the lab raises on purpose.

    `str(error)` is the message; `remedy` is one or two sentences telling the user what to do.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class ConfigError(TVaccineError):
    """A setting is missing, misspelt or out of range."""


class DataError(TVaccineError):
    """A data set, a row or a column is not what was promised."""


class ModelError(TVaccineError):
    """A model or an adapter cannot be found, read or used."""


class TrainingError(TVaccineError):
    """Training cannot go on; a checkpoint, where one exists, is kept."""


class NonFiniteLossError(TrainingError):
    """The loss or a gradient became NaN or infinite at optimiser step `step`."""

    def __init__(self, message: str, *, step: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.step = step


class OutOfMemoryError(TrainingError):
    """The device has no memory left for the step."""


_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def lacks_memory(error: BaseException) -> bool:
    """True if `error` says, in Python's words or a device's, that memory ran out."""
    return isinstance(error, MemoryError | OutOfMemoryError) or any(
        words in str(error).lower() for words in _MEMORY_WORDS
    )


class CancelledError(TVaccineError):
    """The user asked a job to stop; not a failure."""


class StoreError(TVaccineError):
    """The run store cannot be read or written."""


class RunNotFoundError(StoreError):
    """No run, job or model state of that name."""


class RunBusyError(StoreError):
    """The same work is already queued or running: as attack `attack_id` of run `run_id`, each empty if unknown."""

    def __init__(self, message: str, *, remedy: str = "", run_id: str = "", attack_id: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.run_id = run_id
        self.attack_id = attack_id
