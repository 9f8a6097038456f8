"""Puts the findings into the README: `python -m tests.readme_lines README.md`."""

import sys
from pathlib import Path

from app.findings.lines import lines
from tvaccine_core.whole_folders import write_whole

BEGIN, END = "<!-- findings:begin -->\n", "<!-- findings:end -->"


def main(path: Path) -> None:
    """Put the lines between the markers of a file."""
    head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    made = "".join(f"{number}. {line}\n" for number, line in enumerate(lines(), start=1))
    write_whole(path, f"{head}{BEGIN}{made}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
