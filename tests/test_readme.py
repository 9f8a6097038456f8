"""README, docs and PAPERS.md promise nothing that is not there: versions, commands, files, methods."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from app.findings.lines import lines
from tvaccine_core.methods import METHODS
from tvaccine_core.sweeps import report
from tvaccine_core.sweeps.measured import read_results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAPERS = (ROOT / "assets" / "PAPERS.md").read_text(encoding="utf-8")
SPACE_COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def front_matter() -> dict[str, object]:
    match = re.match(r"---\n(.*?)\n---\n", README, re.DOTALL)
    assert match, "README.md must begin with the Space's YAML block"
    return yaml.safe_load(match[1])


def commands() -> list[str]:
    """Every command of the bash blocks of README and docs, its comment left out."""
    blocks = [block for text in (README, *DOCS.values()) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
    return [line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_space_runs_the_gradio_that_is_pinned(front_matter: dict[str, object]) -> None:
    pin = re.search(r"^gradio==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pin
    assert front_matter["sdk"] == "gradio"
    assert front_matter["sdk_version"] == pin[1]


def test_space_front_matter_is_complete_and_allowed(front_matter: dict[str, object]) -> None:
    assert set(front_matter) == {
        *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
        *("short_description", "tags", "models", "datasets", "suggested_hardware"),
    }
    assert {front_matter["colorFrom"], front_matter["colorTo"]} <= SPACE_COLOURS
    assert len(str(front_matter["short_description"])) <= 60
    assert not re.search(r"\w", str(front_matter["emoji"]))
    assert (ROOT / str(front_matter["app_file"])).is_file()
    assert front_matter["suggested_hardware"] == "cpu-basic"


def test_python_version_is_the_one_the_tools_check(front_matter: dict[str, object]) -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'pythonVersion = "{front_matter["python_version"]}"' in settings
    assert f'target-version = "py{str(front_matter["python_version"]).replace(".", "")}"' in settings


def test_licence_is_the_one_that_is_named(front_matter: dict[str, object]) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert front_matter["license"] == "apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_two_commands_stand_there_as_one_line_each() -> None:
    assert "pip install -r requirements.txt && python app.py" in commands()
    assert "pip install -r tests/requirements.txt && python -m pytest" in commands()


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -m tvaccine_core ")])
def test_command_exists_with_its_options(line: str) -> None:
    """Parse the command with the real command line, without running it."""
    from tvaccine_core.__main__ import app

    arguments = shlex.split(line)[3:]
    if arguments == ["--help"]:
        return
    command, context = get_command(app), None
    while arguments and hasattr(command, "commands"):
        context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
        found = command.get_command(context, arguments[0])
        assert found is not None, f"no command {arguments[0]!r}"
        command, arguments = found, arguments[1:]
    parser = command.make_parser(command.make_context(command.name, [], parent=context, resilient_parsing=True))
    parser.parse_args(args=list(arguments))


@pytest.mark.parametrize("folder", sorted((ROOT / "assets" / "sweeps").glob("*-results")), ids=lambda path: path.name)
def test_the_tables_that_ship_are_made_from_the_results_beside_them(folder: Path) -> None:
    made = report.to_markdown(report.tables(read_results(folder / "cells.json")))
    assert (folder / "tables.md").read_text(encoding="utf-8") == made


@pytest.mark.parametrize(
    ("folder", "text"),
    [(ROOT, README), (ROOT / "assets", PAPERS), *((ROOT / "docs", text) for text in DOCS.values())],
    ids=["README", "PAPERS", *DOCS],
)
def test_links_lead_somewhere(folder: Path, text: str) -> None:
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            if target[1:] not in headings:
                wrong.append(target)
        elif not target.startswith("https://") and not (folder / target.partition("#")[0]).exists():
            wrong.append(target)
    assert not wrong


def test_picture_is_light_and_a_command_makes_it_again() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+\.png)\)", README)
    assert (ROOT / picture).stat().st_size <= 400_000
    assert README.index(picture) < README.index("```bash"), "the picture belongs on the first screen"
    assert f"python -m tests.browser.picture {picture}" in DOCS["ARCHITECTURE.md"]
    assert (ROOT / "tests" / "browser" / "picture.py").is_file()


def test_layout_names_what_is_there() -> None:
    block = README.partition("\n## Layout\n")[2].partition("```\n")[2].partition("```")[0]
    names = [line.split()[0] for line in block.splitlines()]
    assert names
    missing = [name for name in names if not (ROOT / name).exists()]
    assert not missing


def test_every_method_has_a_section_with_its_paper() -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAPERS, re.DOTALL | re.MULTILINE))
    for name, info in METHODS.items():
        assert name in sections, f"assets/PAPERS.md has no section {name!r}"
        for identifier in re.findall(r"arXiv:[\d.]+", info.paper):
            assert identifier in sections[name], f"{identifier} is missing in the section {name!r}"
            assert identifier in README, f"{identifier} is missing in the README"
        module = info.path.partition(":")[0].replace(".", "/")
        assert not module or f"{module}.py" in sections[name]


def test_readme_says_the_findings_that_the_page_says() -> None:
    """Made by `python -m tests.readme_lines README.md`."""
    between = README.split("<!-- findings:begin -->")[1].split("<!-- findings:end -->")[0]
    assert between.strip() == "\n".join(f"{number}. {line}" for number, line in enumerate(lines(), start=1))
