"""Files that are whole or absent, and never take the place of another unasked."""

import errno
import os

import pytest

from deepsad_jax import writing


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_exists_by_then_is_kept(tmp_path, monkeypatch, links):
    def no_links(*arguments):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # as on some file systems
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "scored.csv"
    with writing.atomic(path, replace=False) as file:
        file.write(b"mine")
        assert not path.exists()
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]
    message = "scored.csv exists, and nothing is overwritten"
    with pytest.raises(FileExistsError, match=message):
        with writing.atomic(path, replace=False):
            raise AssertionError("nothing is written")
    path.unlink()
    with pytest.raises(FileExistsError, match=message):
        with writing.atomic(path, replace=False) as file:
            file.write(b"mine")
            path.write_bytes(b"of another")  # meanwhile
    assert path.read_bytes() == b"of another" and list(tmp_path.iterdir()) == [path]
    with writing.atomic(path) as file:
        file.write(b"again")
    assert path.read_bytes() == b"again"


def test_a_link_to_nowhere_is_something(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="move it away"):
        writing.check_new(tmp_path / "x")


def test_what_is_unfinished_is_removed_at_an_early_end(tmp_path):
    with pytest.raises(OSError, match="cannot be written: No such file"):
        with writing.atomic(tmp_path / "x") as file:
            file.write(b"half")
            (partial,) = tmp_path.iterdir()
            assert partial.name.endswith(writing.PARTIAL)
            writing.remove_unfinished()
            assert not list(tmp_path.iterdir())
    writing.remove_unfinished()  # of nothing


def test_errors_that_are_not_of_the_file_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="^there is no model pump$"):
        with writing.atomic(tmp_path / "x"):
            raise FileNotFoundError("there is no model pump")
    assert not list(tmp_path.iterdir())
