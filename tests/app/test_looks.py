"""Colours of defences can be seen on both themes, and told apart by colour-blind eyes."""

import re
from itertools import combinations

import numpy as np
import pytest

from app.looks import DASHES, MARKERS, OTHER_COLOURS
from app.services import ASSETS, alignment_methods

ENOUGH = 3.0
"""Least contrast of what a reader must make out in a figure: WCAG 2.2, 1.4.11."""
ORANGE = "#E69F00"
"""SFT's, Okabe and Ito's: on white it has 2.2. It is known everywhere, and never told by its colour alone."""
CAN_BE_TOLD = 0.07
"""Least distance in OKLab, where 0.02 is just seen between large patches."""
EYES = {
    "all colours": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""What is seen of linear RGB: Machado, Oliveira and Fernandes 2009, table 1, complete deficiency."""
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
METHOD_COLOURS = [info.colour for info in alignment_methods()]


def linear(colour: str) -> np.ndarray:
    """Linear RGB of `#rrggbb`, 0..1."""
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio, 1..21."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def oklab(colour: str, eyes: np.ndarray) -> np.ndarray:
    """Where a colour lies for these eyes, so that distances are what is seen (Ottosson 2020)."""
    return TO_LAB @ np.cbrt(TO_CONES @ np.clip(eyes @ linear(colour), 0, 1))


def backgrounds() -> list[str]:
    """What figures, cards and panes stand on, in the light theme and in the dark one."""
    css = (ASSETS / "lab.css").read_text(encoding="utf-8")
    found = re.findall(r"--lab-(?:paper|surface): (#[0-9a-f]{6});", css)
    assert len(found) == 4
    return found


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("background", backgrounds())
@pytest.mark.parametrize("colour", sorted({*OTHER_COLOURS, *METHOD_COLOURS} - {ORANGE}))
def test_every_colour_can_be_made_out_on_both_themes(colour: str, background: str) -> None:
    assert contrast(colour, background) >= ENOUGH


@pytest.mark.parametrize("eyes", EYES)
def test_no_two_colours_look_alike_to_any_eyes(eyes: str) -> None:
    places = {colour: oklab(colour, EYES[eyes]) for colour in (*OTHER_COLOURS, *METHOD_COLOURS)}
    for one, other in combinations(places, 2):
        if {one, other} <= set(METHOD_COLOURS):  # Okabe and Ito's, which this page did not choose
            continue
        assert np.linalg.norm(places[one] - places[other]) >= CAN_BE_TOLD, (one, other)


def drawn_in_legends(table: str) -> set[str]:
    """What the page's script can draw of `table`, one of its constants."""
    script = (ASSETS / "lab.js").read_text(encoding="utf-8")
    found = re.search(rf"const {table} = {{(.*?)}};", script, re.DOTALL)
    assert found
    return set(re.findall(r"""["']?([a-z][a-z-]*)["']?: ["']""", found[1]))


def test_legends_draw_every_marker_and_dash() -> None:
    """They are drawn as HTML; what is not known there would look like another defence's."""
    assert set(MARKERS) <= drawn_in_legends("SHAPES")
    assert set(DASHES) - {"solid"} <= drawn_in_legends("DASHES")
