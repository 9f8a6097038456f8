"""House rules that the linter cannot hold."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([ROOT / "app.py", *(ROOT / "app").rglob("*.py"), *(ROOT / "tvaccine_core").rglob("*.py")])
MAX_LINES = 400
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "eval", "exec"}

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


@each_source
def test_file_holds_one_idea(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: it holds two ideas, divide it"


@each_source
def test_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "a module with code needs a docstring"


@each_source
def test_nothing_is_pickled_or_evaluated(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in UNSAFE]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in UNSAFE:
            found.append(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            found.append(ast.unparse(node.func))
    assert not found


def test_no_path_of_somebodys_machine_is_written_down() -> None:
    """Absolute home, work or temporary folders work on one machine only."""
    folders = "|".join(["work", "root", "home", "Users", "tmp", "opt"])
    pattern = re.compile(rf"""["'\s(=](/(?:{folders})/[\w.-]+)""")
    texts = [*SOURCES, *(ROOT / "tests").rglob("*.py"), ROOT / "README.md", *ROOT.glob("*.txt"), *ROOT.glob("*.toml")]
    found = {
        str(path.relative_to(ROOT)): pattern.findall(path.read_text(encoding="utf-8"))
        for path in texts
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    assert not found


def test_nothing_outside_methods_asks_which_method_it_is() -> None:
    """What the program must know of a method is said by its entry in METHODS, see `methods.capabilities`."""
    found = []
    for path in SOURCES:
        if "methods" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                kinds = ast.unparse(node.args[1])
                if re.search(r"(Vaccine|SFT)(Config)?\b", kinds):
                    found.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)}")
    assert not found
