"""The data folder: made, refused, owned; paths, free space, listing and removing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cachesrv.store.commands import Filed, Inline, Packed
from cachesrv.store.constants import FORMAT_VERSION
from cachesrv.store.errors import FormatError, StoreLocked
from cachesrv.store.folder import DataFolder, FoundFiles

ID = 0x0123_4567_89AB_CDEF


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "deep" / "data")
    made.create_or_open()
    return made


def write(path: str, size: int) -> None:
    Path(path).write_bytes(bytes(size))


def test_it_is_made_private_and_opens_again(folder: DataFolder) -> None:
    assert json.loads((folder.root / "format").read_text()) == {"format": FORMAT_VERSION}
    for name in ("", "index", "volatile", "f", "f/00", "f/ff", "p", "q", "run"):
        assert (folder.root / name).stat().st_mode & 0o777 == 0o700, name
    write(folder.part(ID, 0), 10)
    DataFolder(folder.root).create_or_open()
    assert Path(folder.part(ID, 0)).stat().st_size == 10


def test_an_interrupted_making_is_completed(tmp_path: Path) -> None:
    (tmp_path / "format.new").write_text('{"fo')
    (tmp_path / "LOCK").touch()
    folder = DataFolder(tmp_path)
    folder.create_or_open()
    (tmp_path / "f" / "80").rmdir()
    folder.create_or_open()
    assert (tmp_path / "f" / "80").is_dir()


def test_a_newer_format_is_refused_by_both_numbers(folder: DataFolder) -> None:
    (folder.root / "format").write_text('{"format": 7}')
    with pytest.raises(FormatError, match=rf"format 7.*format {FORMAT_VERSION}"):
        folder.create_or_open()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "1"}', '{"format": 0}', "\xff"])
def test_a_format_that_cannot_be_read_is_refused(folder: DataFolder, text: str) -> None:
    (folder.root / "format").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError):
        folder.create_or_open()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FormatError, match=r"thesis\.tex"):
        DataFolder(tmp_path).create_or_open()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_owner(folder: DataFolder) -> None:
    folder.lock()
    folder.lock()
    other = DataFolder(folder.root)
    with pytest.raises(StoreLocked):
        other.lock()
    folder.unlock()
    other.lock()
    other.unlock()


def test_paths(folder: DataFolder) -> None:
    assert folder.part(ID, 0x1F) == f"{folder.root}/f/ef/0123456789abcdef.001f"
    assert folder.log(ID) == f"{folder.root}/f/ef/0123456789abcdef.log"
    assert folder.bucket(ID) == f"{folder.root}/f/ef"
    assert folder.segment(0xA) == f"{folder.root}/p/000000000000000a.seg"
    assert folder.quarantined(folder.segment(0xA)) == f"{folder.root}/q/000000000000000a.seg"


def test_free_space_is_asked_for_once_a_second(tmp_path: Path) -> None:
    now, answers = [100.0], iter([5000, 3000])
    folder = DataFolder(tmp_path, free=lambda _: next(answers), clock=lambda: now[0])
    assert folder.free_bytes() == 5000
    now[0] += 0.9
    assert folder.has_room(4000, 1000)
    assert not folder.has_room(4001, 1000)
    now[0] += 0.2
    assert folder.free_bytes() == 3000
    assert DataFolder(tmp_path).free_bytes() > 0


def test_listing_for_the_sweep(folder: DataFolder) -> None:
    write(folder.part(ID, 0), 10)
    write(folder.part(ID, 2), 5)
    write(folder.log(ID), 3)
    write(folder.log(0x10), 4)
    write(folder.bucket(ID) + "/notes.txt", 4)
    for path in (folder.part(ID, 0), folder.part(ID, 2), folder.log(0x10)):
        os.utime(path, (1, 1))
    os.utime(folder.log(ID), (7, 7))
    assert list(folder.files()) == [FoundFiles(0x10, (), True, 4, 1000), FoundFiles(ID, (0, 2), True, 18, 7000)]
    write(folder.segment(9), 6)
    assert list(folder.segments()) == [(9, 6)]


def test_removing(folder: DataFolder) -> None:
    for part in range(4):
        write(folder.part(ID, part), 10)
    write(folder.log(ID), 3)
    with open(folder.part(ID, 0), "rb") as reader:
        assert folder.remove_files(ID, [0]) == 10
        assert reader.read() == bytes(10)
    assert folder.remove_files(ID, 2) == 10
    write(folder.part(ID, 0), 1)
    write(folder.part(ID, 1), 1)
    assert folder.remove_upload(ID) == 22
    assert folder.remove_upload(ID) == 0
    assert list(folder.files()) == []


def test_quarantine_and_holds(folder: DataFolder) -> None:
    write(folder.part(ID, 0), 10)
    write(folder.part(ID, 1), 10)
    write(folder.segment(1), 100)
    filed = Filed(ID, 2, 4, 6, 20)
    assert folder.holds(filed)
    assert not folder.holds(Filed(ID, 2, 4, 7, 20))
    assert not folder.holds(Filed(ID, 3, 4, 6, 20))
    assert folder.holds(Packed(1, 60, 40))
    assert not folder.holds(Packed(1, 61, 40))
    assert not folder.holds(Packed(2, 0, 1))
    assert folder.holds(Inline(b"x"))
    folder.quarantine(ID, 3)
    folder.quarantine(ID, 3)
    assert not folder.holds(filed)
    assert len(list((folder.root / "q").iterdir())) == 2
