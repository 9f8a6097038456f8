"""A folder is replaced as a whole, or stays as it was."""

from pathlib import Path

import pytest

from tvaccine_core.whole_folders import replace_folder


def test_the_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "made"
    for name in ("old", "new"):
        with replace_folder(folder) as made:
            assert list(made.iterdir()) == []
            (made / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "made"
    with replace_folder(folder) as made:
        (made / "old").touch()

    def fail() -> None:
        with replace_folder(folder) as made:
            (made / "half").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".partial-made"
    left.mkdir()
    (left / "half").touch()
    with replace_folder(tmp_path / "made"):
        assert not (left / "half").exists()
    assert not left.exists()
