"""Who may import whom, held by reading every module; and by starting the real thing and looking inside it.

The face (`app/`) must never load torch: the page is up in seconds and stays up when a training job dies. The engine
never sees the face. Inside the engine a module imports from its own layer or from below. And what is imported from
outside is what requirements.txt names, no more and no less.
"""

import ast
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from processes import free_port

ROOT = Path(__file__).resolve().parents[1]

TORCH = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors.torch"}
"""Importing any of these loads torch, or is only of use with it."""

LAYERS = (
    *({"errors"}, {"names"}, {"machine"}, {"plain_text"}, {"records"}, {"json_files"}, {"safe_yaml"}),
    {"whole_folders"},
    {"estimates"},
    {"config"},
    {"worlds"},
    {"data"},
    {"store"},
    {"models"},
    {"processes"},
    {"fast"},
    {"passes"},
    {"states"},
    {"methods"},
    {"evaluation"},
    {"orders"},
    {"training"},
    *({"pipeline"}, {"answering"}),
    {"plan"},
    {"workers"},
    {"results"},
    {"sweeps"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
"""The engine from the ground up, by the first name under `tvaccine_core`: each imports only from those before it."""

TORCH_FREE = (
    "tvaccine_core",
    "tvaccine_core.errors",
    "tvaccine_core.records",
    "tvaccine_core.plain_text",
    "tvaccine_core.machine",
    "tvaccine_core.safe_yaml",
    "tvaccine_core.config",
    "tvaccine_core.models.files",
    "tvaccine_core.methods",
    "tvaccine_core.models.sizes",
    "tvaccine_core.data.previews",
    "tvaccine_core.data.prompts",
    "tvaccine_core.data.mixtures",
    "tvaccine_core.data.sources",
    "tvaccine_core.orders",
    "tvaccine_core.store",
    "tvaccine_core.workers.supervisor",
    "tvaccine_core.workers.multi_process",
    "tvaccine_core.__main__",
    "app",
    "app.services",
)

METHOD_FILE_MAY_IMPORT = {
    *("errors", "records", "config", "models.anatomy", "models.hooks", "models.files"),
    *("passes.memory", "passes.perturbation", "passes.losses", "passes.passes", "passes.sinks"),
    *("methods", "methods.base"),
}
STORE_READERS = {"store", "orders", "workers", "results", "sweeps", "bench", "cli", "__main__"}


@dataclass(frozen=True)
class Import:
    """One imported module, as `package.module`; `eager` if importing the importer runs it."""

    target: str
    eager: bool
    line: int


def module_name(path: Path) -> str:
    """Dotted name of a file of this repository; app.py is `app.py`, because `app` is the package."""
    relative = path.relative_to(ROOT)
    if relative == Path("app.py"):
        return "app.py"
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def source_modules() -> dict[str, Path]:
    """Every module of the two packages and the entry script, by name."""
    paths = [ROOT / "app.py", *(ROOT / "app").rglob("*.py"), *(ROOT / "tvaccine_core").rglob("*.py")]
    return {module_name(path): path for path in paths}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk_imports(node: ast.AST, package: str, eager: bool = True) -> Iterator[Import]:
    """Imports under `node`, in order. Function bodies and TYPE_CHECKING blocks are not eager."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(name.name, eager, child.lineno)
        elif isinstance(child, ast.ImportFrom):
            parents = package.split(".")
            prefix = parents[: len(parents) - child.level + 1] if child.level else []
            base = ".".join([*prefix, *([child.module] if child.module else [])])
            for name in child.names:
                yield Import(f"{base}.{name.name}", eager, child.lineno)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
            yield from walk_imports(child, package, eager and not deferred)


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    path = source_modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(walk_imports(ast.parse(path.read_text(encoding="utf-8")), package))


def own_module(target: str) -> str | None:
    """The repository's module that importing `target` names: itself, or the module it is an attribute of."""
    while target:
        if target in source_modules():
            return target
        target = target.rpartition(".")[0]
    return None


def layer_name(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def loads_torch(target: str) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in TORCH)


def eager_path_to_torch(name: str) -> list[str] | None:
    """Chain of module-level imports from `name` to torch, or None."""
    seen: set[str] = set()

    def search(module: str) -> list[str] | None:
        if module in seen:
            return None
        seen.add(module)
        for item in imports_of(module):
            if item.eager and loads_torch(item.target):
                return [module, item.target]
        parent = module.rpartition(".")[0]
        targets = [own_module(item.target) for item in imports_of(module) if item.eager]
        for target in [parent if parent in source_modules() else None, *targets]:
            if target and (rest := search(target)):
                return [module, *rest]
        return None

    return search(name)


def engine_modules() -> list[str]:
    return [name for name in source_modules() if name.split(".")[0] == "tvaccine_core"]


def test_the_scanner_sees_every_form_of_import() -> None:
    source = (
        "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\n"
        "if TYPE_CHECKING:\n    import h\ntry:\n    import i\nexcept OSError:\n    pass\n"
        "def later():\n    from j import k\nclass C:\n    import l\n"
    )
    found = [(item.target, item.eager) for item in walk_imports(ast.parse(source), "top.pack")]
    assert found == [
        ("a.b", True),
        ("c.d", True),
        ("top.pack.e", True),
        ("top.f.g", True),
        ("h", False),
        ("i", True),
        ("j.k", False),
        ("l", True),
    ]


@pytest.mark.parametrize("name", sorted(source_modules()))
def test_module_obeys_the_import_rules(name: str) -> None:
    wrong = []
    for item in imports_of(name):
        target = own_module(item.target)
        place = f"{name} line {item.line} imports {item.target}"
        if name == "app.py" or name.split(".")[0] == "app":
            if loads_torch(item.target):
                wrong.append(f"{place}: nothing under app may import torch and its kin")
            if target and target.startswith("tvaccine_core") and not name.startswith("app.services"):
                wrong.append(f"{place}: only app/services touches the engine")
            if target and target.startswith("tvaccine_core") and (chain := eager_path_to_torch(target)):
                wrong.append(f"{place}: it reaches torch by {' -> '.join(chain)}")
        else:
            if item.target.split(".")[0] in {"app", "gradio"}:
                wrong.append(f"{place}: the engine never imports the face")
            if target and layer_name(target):
                if rank(layer_name(target)) > rank(layer_name(name)):
                    wrong.append(f"{place}: that stands above it")
                if layer_name(target) == "store" and layer_name(name) not in STORE_READERS:
                    wrong.append(f"{place}: the engine reports through events, not through the store")
    assert not wrong, "\n".join(wrong)


def rank(layer: str) -> int:
    """Height of a layer; the bare package (its version) stands below all."""
    if not layer:
        return -1
    for height, names in enumerate(LAYERS):
        if layer in names:
            return height
    raise AssertionError(f"tvaccine_core.{layer} has no place in LAYERS: give it one, by DESIGN's order")


def test_every_engine_module_has_a_place() -> None:
    assert all(rank(layer_name(name)) >= -1 for name in engine_modules())


def test_folders_are_two_deep_at_most() -> None:
    depths = {name: name.count(".") for name in engine_modules()}
    assert max(depths.values()) <= 3, [name for name, depth in depths.items() if depth > 3]


def test_a_method_imports_mechanics_and_never_another_method() -> None:
    methods = [name for name in engine_modules() if name.startswith("tvaccine_core.methods.")]
    assert methods
    wrong = []
    for name in methods:
        for item in imports_of(name):
            target = own_module(item.target)
            top = item.target.split(".")[0]
            if target:
                allowed = target.removeprefix("tvaccine_core.") in METHOD_FILE_MAY_IMPORT
            else:
                allowed = top == "torch" or top in sys.stdlib_module_names
            if not allowed:
                wrong.append(f"{name} line {item.line} imports {item.target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_module_reaches_no_torch_by_reading(name: str) -> None:
    assert name in source_modules(), f"{name} is gone: correct TORCH_FREE"
    assert eager_path_to_torch(name) is None


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_face_leaves_torch_out() -> None:
    heavy = sorted(TORCH)
    code = f"import app, sys; app.build_app; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python(code) == "[]"


def test_importing_the_engine_without_running_it_leaves_torch_out() -> None:
    heavy = sorted(TORCH)
    names = [name for name in TORCH_FREE if name.startswith("tvaccine_core")]
    code = f"import {', '.join(names)}; import sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python(code) == "[]"


def seconds_to_first_page(process: subprocess.Popen[bytes], url: str, started: float, limit_s: float) -> float:
    """Seconds from `started` until the page answers; raises if it does not within `limit_s`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() - started < limit_s:
        assert process.poll() is None, "app.py ended before it answered"
        try:
            with opener.open(url, timeout=limit_s) as page:
                assert b"gradio" in page.read()
                return time.monotonic() - started
        except urllib.error.URLError:
            time.sleep(0.05)
    raise AssertionError(f"no page within {limit_s} s")


def seconds_without_a_core(pid: int) -> float:
    """Seconds that the process's main thread was ready to run and another process had the core."""
    _, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()
    return int(waited_ns) / 1e9


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="reads /proc/<pid>, which this system lacks")
def test_the_page_answers_within_8_s_and_its_process_maps_no_torch(tmp_path: Path) -> None:
    """Started as a Space starts it: address and port come from the environment.

    Time during which other work on this machine held the core is not the page's, and is taken off.
    """
    port = free_port()
    command = [sys.executable, "app.py", "--data-dir", str(tmp_path), "--no-worker"]
    environment = {**os.environ, "GRADIO_SERVER_NAME": "127.0.0.2", "GRADIO_SERVER_PORT": str(port)}
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            seconds = seconds_to_first_page(process, f"http://127.0.0.2:{port}/", started, limit_s=240)
            seconds -= seconds_without_a_core(process.pid)
            mapped = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
        finally:
            process.terminate()
    assert "python" in mapped
    assert "libtorch" not in mapped
    assert seconds <= 8


def distributions(paths: list[Path], own: set[str]) -> dict[str, set[str]]:
    """Third-party distributions imported by `paths`: name -> files. Names are normalised as pip does."""
    installed = packages_distributions()
    found: dict[str, set[str]] = {}
    for path in paths:
        for item in walk_imports(ast.parse(path.read_text(encoding="utf-8")), package="none"):
            top = item.target.split(".")[0]
            if top in sys.stdlib_module_names or top in own:
                continue
            for name in installed.get(top, [top]):
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(path.name)
    return found


def requirements(path: Path) -> dict[str, tuple[str, str]]:
    """name -> (bound, reason) of each line of a requirements file; its `-r` line aside."""
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "-r"))]
    matches = {line: re.fullmatch(r"([a-z0-9-]+)((?:==|~=)[0-9.]+) +# (.{10,})", line) for line in lines}
    broken = [line for line, match in matches.items() if not match]
    assert not broken, f"{path.name}: not `name==bound  # reason`: {broken}"
    return {match[1]: (match[2], match[3]) for match in matches.values() if match}


def test_requirements_name_what_the_code_imports_and_nothing_else() -> None:
    named = requirements(ROOT / "requirements.txt")
    used = distributions(list(source_modules().values()), own={"app", "tvaccine_core"})
    missing = {name: files for name, files in used.items() if name not in named}
    assert not missing, f"imported, not in requirements.txt: {missing}"
    idle = [name for name, (_, reason) in named.items() if name not in used and "not imported" not in reason]
    assert not idle, f"in requirements.txt, imported nowhere, no reason given: {idle}"
    stale = [name for name, (_, reason) in named.items() if name in used and "not imported" in reason]
    assert not stale, f"requirements.txt calls these not imported, but they are: {stale}"


def test_test_requirements_include_the_lab_and_name_what_the_tests_import() -> None:
    path = ROOT / "tests" / "requirements.txt"
    assert "-r ../requirements.txt" in path.read_text(encoding="utf-8").splitlines()
    files = sorted((ROOT / "tests").rglob("*.py"))
    own = {"app", "tvaccine_core", *(file.stem for file in files), *(file.parent.name for file in files)}
    named = {**requirements(ROOT / "requirements.txt"), **requirements(path)}
    missing = {name: found for name, found in distributions(files, own).items() if name not in named}
    assert not missing, f"imported by tests, in neither requirements file: {missing}"
