"""The README's picture: a real run of the preset "Knowledge intact" on the Compare step, its answers in sight.

    python -m tests.browser.picture docs/compare.png

Takes a few minutes on two cores, and Debian's `chromium`. Answers may differ on another kind of CPU.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from app.services import PRESETS
from tests.browser.browser_steps import PATIENCE_MS, Server, ask, go, open_page, serve
from tests.engine.processes import free_port
from tvaccine_core import orders

WIDTH, HEIGHT = 1440, 1400
"""CSS pixels of the window; the picture ends below the table of scores."""
MARGIN = 16
RUN_WITHIN_S = 1800.0


def run_attacked(server: Server) -> str:
    """Align and attack by the page's workers; returns the run's id."""
    run = orders.start_run(server.store, PRESETS["sandbox-intact"].config, "Knowledge intact", attack=True).run_id
    deadline = time.monotonic() + RUN_WITHIN_S
    while server.store.jobs(run, states=("queued", "running")):
        assert time.monotonic() < deadline, "the run takes too long"
        time.sleep(1)
    assert server.store.run(run).status == "done"
    return run


def ask_what_the_attack_changed(page: Page) -> None:
    """Ask the suggested prompts in turn, until one was refused before the attack and answered after it."""
    go(page, 4)
    chips = page.locator("#suggested [data-choice]")
    expect(chips.first).to_be_visible()
    for prompt in [chip.get_attribute("data-choice") or "" for chip in chips.all()]:
        ask(page, prompt)
        verdicts = page.locator(".lab-pane .lab-verdict").all_inner_texts()
        if verdicts == ["refused", "refused", "harmful", "harmful"]:
            return
    sys.exit("No suggested prompt was refused before the attack and answered after it by both models.")


def main(path: Path) -> None:
    """Write the picture to `path`."""
    chromium = shutil.which("chromium") or sys.exit("There is no chromium: install Debian's package.")
    expect.set_options(timeout=PATIENCE_MS)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), free_port(), Path(folder) / "server.log") as server,
    ):
        run = run_attacked(server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", device_scale_factor=1.5
            )
            page.set_default_timeout(PATIENCE_MS)
            open_page(page, f"{server.url}/?run={run}")
            ask_what_the_attack_changed(page)
            page.get_by_role("button", name="Unblur").click()
            page.mouse.move(0, 0)
            table = page.locator("#scores-table").bounding_box()
            assert table is not None
            end = table["y"] + table["height"] + MARGIN
            page.screenshot(path=path, clip={"x": 0, "y": 0, "width": WIDTH, "height": end})
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
