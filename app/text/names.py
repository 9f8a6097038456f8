"""Names of settings, sets, times and sources, as users read them."""

from app.services import find_set

CHOICES = {
    "int8": "int8, 8 bits per weight",
    "nf4": "NF4, 4 bits per weight",
    "cpu": "CPU",
    "cuda": "CUDA",
    "mps": "MPS (Apple)",
    "new": "new, on the frozen aligned adapter",
    "single": "single, train the aligned adapter further",
    "attention": "attention only (released code)",
    "layer": "whole layer (paper)",
    "top_k": "top k",
}
WHEN = {"before": "before the attack", "after": "after the attack", "repaired": "repaired after the attack"}
WHEN_SHORT = {"before": "before", "after": "after attack", "repaired": "repaired"}
SOURCES = {
    "refusal": "refuse",
    "ordinary": "ordinary",
    "harmful": "harmful",
    "task": "task",
    "chat": "chat",
}


def set_title(where: str) -> str:
    """An evaluation set by the name users read."""
    found = find_set(where)
    return found.title if found else where.removeprefix("task:").replace("_", " ")


def measure_of(where: str) -> str:
    """The measure of a set: `HS, aligned names`, `FA, sentiment`, or its own name."""
    found = find_set(where)
    if found and not found.harmful:
        return found.title
    return f"{'FA' if where.startswith('task:') else 'HS'}, {set_title(where)}"


def device(name: str, cores: int) -> str:
    """Where the models run, as far as the page can know."""
    words = {"auto": f"a GPU if PyTorch sees one, else {cores} cores", "cpu": f"the CPU, {cores} cores"}
    return words.get(name, CHOICES.get(name, name))


def duration(seconds: float | None) -> str:
    """`about 3 min`, `40 s`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"
