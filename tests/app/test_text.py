"""The sentences have one home each, and nobody keeps sentences that no screen says."""

import ast
import re
from collections import Counter
from pathlib import Path

from app import text

FOLDER = Path(text.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")


def defined_in(path: Path) -> list[str]:
    """Names that a file defines itself, constants and functions."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return found


def test_every_name_has_one_home_and_none_is_a_files() -> None:
    names = Counter(name for path in FILES for name in [path.stem, *defined_in(path)])
    assert len(names) > 150
    assert not [name for name, count in names.items() if count > 1]


def test_every_name_can_be_reached() -> None:
    assert not [name for path in FILES for name in defined_in(path) if not hasattr(text, name)]


def test_every_sentence_is_said_somewhere() -> None:
    sources = [path.read_text(encoding="utf-8") for path in FOLDER.parent.rglob("*.py")]
    words = Counter(word for source in sources for word in re.findall(r"\w+", source))
    assert not [name for path in FILES for name in defined_in(path) if words[name] < 2]
