"""Lines of a log where there may be no room for them: nothing raises, nothing waits, nothing is torn."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from pathlib import Path

from serve.lines import Counts, Lines, SharedFile, Stream
from tests.support.full_disk import full_disk
from tests.support.stack import wait_for

ROOMY = 1 << 30


def shared(path: Path, most: int = 10_000, most_bytes: int = ROOMY, older: int = 2) -> Lines:
    return Lines(SharedFile(path, most_bytes, older), lambda lost: f"lost {lost}", most, again_s=0.02)


def test_lines_wait_for_room_in_order_and_none_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = shared(path)
    with full_disk(at_bytes=25):
        for number in range(10):
            lines.write(f"line {number:03}")  # of nine bytes: the third is cut
        assert lines.counts() == Counts(8, 0)
        assert path.read_text() == "line 000\nline 001\n"
    wait_for(lambda: lines.counts().waiting == 0)
    lines.write("line 010")
    assert path.read_text().splitlines() == [f"line {number:03}" for number in range(11)]


def test_what_finds_no_room_in_memory_is_counted_and_told_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = shared(path, most=3)
    with full_disk(at_bytes=0):
        for number in range(10):
            lines.write(f"{number}")
        assert lines.counts() == Counts(3, 7)
    wait_for(lambda: lines.counts().waiting == 0 and path.read_text().endswith("lost 7\n"))
    lines.write("after")
    assert path.read_text().split() == ["0", "1", "2", "lost", "7", "after"]
    assert lines.counts() == Counts(0, 7)


def test_a_stream_closes_a_line_that_was_cut_and_writes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        lines = Lines(Stream(file.fileno), str, again_s=0.02)
        with full_disk(at_bytes=12):
            lines.write("whole")
            lines.write("cut here")
        wait_for(lambda: lines.counts().waiting == 0)
    first, torn, again = path.read_text().splitlines()
    assert (first, again) == ("whole", "cut here")
    assert "cut here".startswith(torn)


def test_a_reader_that_does_not_read_keeps_nobody_waiting() -> None:
    """As a pipe to a log collector that stands still: the lines come when it goes on."""
    reading, writing = os.pipe()
    lines = Lines(Stream(lambda: writing), str, again_s=0.02)
    began = time.monotonic()
    for number in range(3_000):
        lines.write(f"{number:099}")  # 300 kB, and a pipe holds 64
    assert time.monotonic() - began < 2
    assert lines.counts().waiting > 0
    read = b""
    while len(read) < 300_000:
        read += os.read(reading, 1 << 16)
    assert [int(line) for line in read.split()] == list(range(3_000))
    os.close(reading)
    os.close(writing)


def test_nothing_raises_where_nothing_can_be_written_and_it_heals() -> None:
    streams = [-1]  # as of a process without standard error

    def stream() -> int:
        if streams[-1] < 0:
            raise OSError("there is none")
        return streams[-1]

    lines = Lines(Stream(stream), str, most=1, again_s=0.02)
    for _ in range(3):
        lines.write("x")
    assert lines.counts() == Counts(1, 2)
    with open(os.devnull, "w") as nowhere:
        streams.append(nowhere.fileno())
        wait_for(lambda: lines.counts().waiting == 0)


def test_a_full_file_is_rotated_and_only_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = shared(path, most_bytes=20, older=2)
    for number in range(11):
        lines.write(f"line {number:03}")
    kept = {file.name: file.read_text().split("\n")[:-1] for file in tmp_path.glob("log*")}
    assert kept == {
        "log.2": ["line 006", "line 007"],
        "log.1": ["line 008", "line 009"],
        "log": ["line 010"],
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_several_writers_rotate_one_file_and_lose_no_line(tmp_path: Path) -> None:
    """Each opens it by itself, as router processes do."""
    path, many = tmp_path / "log", 500
    writers = [shared(path, most_bytes=4_000, older=100) for _ in range(4)]

    def write(place: int) -> None:
        for number in range(many):
            writers[place].write(json.dumps({"writer": place, "number": number}))

    threads = [threading.Thread(target=write, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: not any(writer.counts().waiting for writer in writers))
    files = sorted(tmp_path.glob("log*"), key=lambda file: int(file.suffix[1:] or 0), reverse=True)
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) > 10
    assert max(file.stat().st_size for file in files) <= 4_000
    for place in range(4):
        assert [line["number"] for line in found if line["writer"] == place] == list(range(many))


def test_a_line_that_a_killed_writer_left_torn_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"whole": 1}\n{"torn')
    shared(path).write('{"next": 2}')
    assert path.read_text().splitlines() == ['{"whole": 1}', '{"torn', '{"next": 2}']


def test_a_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = shared(path)
    lines.write("before")
    path.unlink()
    lines.write("after")
    assert path.read_text() == "after\n"


def test_a_writer_that_is_stopped_while_it_has_the_lock_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with (tmp_path / ".log.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = shared(path)
        began = time.monotonic()
        lines.write("late")
        assert time.monotonic() - began < 1
        assert lines.counts() == Counts(1, 0)
    wait_for(lambda: path.exists() and path.read_text() == "late\n")
