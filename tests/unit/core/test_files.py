import errno
import hashlib
import os

import pytest

from sigma.core import files
from sigma.core.files import append_line, complete_torn_line, replace, sha256_file, write_atomic, write_durable


def test_bytes_and_callback_write_the_same_file_and_return_its_hash(tmp_path):
    data = bytes(range(256)) * 9001  # more than one buffer, no multiple of it
    first = write_atomic(tmp_path / "a", data)
    pieces = [data[i : i + 997] for i in range(0, len(data), 997)]
    second = write_atomic(tmp_path / "b", lambda file: file.writelines(pieces))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == data
    assert first == second == sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_the_hash_is_of_what_the_system_accepted_when_writes_are_partial(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    assert write_atomic(tmp_path / "a", b"0123456789") == hashlib.sha256(b"0123456789").hexdigest()
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    write_atomic(tmp_path / "b", lambda file: file.write(b"0123456789"))
    assert (tmp_path / "b").read_bytes() == b"0123456789"
    append_line(tmp_path / "c", "0123456789")
    assert (tmp_path / "c").read_bytes() == b"0123456789\n"


def test_file_is_forced_to_disk_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, real=real: (order.append(name), real(*a))[1])
    write_atomic(tmp_path / "a", b"x")
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failing_system_call_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch, call):
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert target.read_bytes() == b"old"


def test_an_exception_in_the_callback_leaves_the_old_content_and_closes_the_file(tmp_path):
    target = tmp_path / "a"
    target.write_bytes(b"old")
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()

    def half(file):
        file.write(b"ne")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_atomic(target, half)
    with pytest.raises(RuntimeError, match="stop"):
        write_durable(tmp_path / "b", half)
    assert target.read_bytes() == b"old"
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


class Locked32Error(PermissionError):
    winerror = 32


class OtherDisk17Error(OSError):
    winerror = 17


def test_a_locked_file_is_retried_with_growing_pauses(tmp_path, monkeypatch):
    pauses, real = [], os.replace

    def locked_twice(source, target):
        if len(pauses) < 2:
            raise Locked32Error(13, "locked")
        real(source, target)

    monkeypatch.setattr(files.time, "sleep", pauses.append)
    monkeypatch.setattr(files.os, "replace", locked_twice)
    write_atomic(tmp_path / "a", b"x")
    assert pauses == [0.05, 0.1]
    assert (tmp_path / "a").read_bytes() == b"x"


@pytest.mark.parametrize("code, hint", [(5, "permission"), (32, "virus scanner"), (145, "not empty")])
def test_a_file_locked_for_good_raises_with_the_hint_of_its_code_after_ten_seconds(tmp_path, monkeypatch, code, hint):
    pauses = []

    def locked(*_):
        error = PermissionError(13, "locked")
        error.winerror = code  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(files.time, "sleep", pauses.append)
    monkeypatch.setattr(files.os, "replace", locked)
    with pytest.raises(files.FileBusyError, match=hint):
        replace(tmp_path / "a", tmp_path / "b")
    assert 9 < sum(pauses) < 11


def test_other_errors_are_not_retried(tmp_path, monkeypatch):
    def fail(*_):
        raise OtherDisk17Error(18, "other disk")

    monkeypatch.setattr(files.time, "sleep", lambda _: pytest.fail("slept"))
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="other disk"):
        replace(tmp_path / "a", tmp_path / "b")


def test_append_line_is_one_write_and_keeps_earlier_lines(tmp_path, monkeypatch):
    writes, real = [], os.write
    monkeypatch.setattr(files.os, "write", lambda fd, data: (writes.append(bytes(data)), real(fd, data))[1])
    append_line(tmp_path / "log", "eins")
    append_line(tmp_path / "log", "zwei é")
    assert writes == [b"eins\n", "zwei é\n".encode()]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "eins\nzwei é\n"


def test_append_line_refuses_a_line_break(tmp_path):
    with pytest.raises(ValueError, match="one line"):
        append_line(tmp_path / "log", "a\nb")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "content, torn", [(None, False), (b"", False), (b"a\n", False), (b'a\n{"x": 1', True), (b"a", True)]
)
def test_only_a_torn_last_line_is_completed(tmp_path, content, torn):
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    assert complete_torn_line(path) is torn
    assert (path.read_bytes() if content is not None else None) == (content + b"\n" if torn else content)
