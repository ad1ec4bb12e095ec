"""Strangers' files: what is no file, and what has no end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgediff.files import open_regular, read_regular, sync_file, sync_folder


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes") as error:
        read_regular(path, 4)
    assert error.value.errno == errno.EFBIG


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes in the file system")
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for a writer
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"no regular file|directory"):
            open_regular(path)


def test_syncing_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    sync_file(path)
    sync_folder(tmp_path)
    sync_folder(tmp_path / "missing")  # what cannot be synced is passed over
    assert path.read_bytes() == b"12345"
