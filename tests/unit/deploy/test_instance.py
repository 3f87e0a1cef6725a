"""Who holds an instance, what a dead one left, and what a full disk must not end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from serve.deploy.instance import LOG_BYTES, OLDER_LOGS, Instance, instances
from serve.deploy.local import Steady
from serve.settings import SettingsError
from tests.support.full_disk import full_disk
from tests.support.instances import belonging, gone_within, recorded, runs, state_folder, supervisor

_MAP = "import sys, time; from multiprocessing.shared_memory import SharedMemory; m = SharedMemory({}); "
_MAP += "print(m.name, flush=True); time.sleep(600)"
_SEMAPHORE = "import multiprocessing, time; s = multiprocessing.get_context('spawn').Semaphore(); "
_SEMAPHORE += "print('sem.' + s._semlock.name.lstrip('/'), flush=True); time.sleep(600)"


@pytest.fixture
def instance() -> Iterator[Instance]:
    with state_folder() as state:
        made = Instance(8123, {"STARSERVE_STATE": str(state)})
        made.make()
        yield made


def test_only_one_holds_an_instance_and_the_other_learns_who(instance: Instance) -> None:
    config = Path("there.yaml")
    with supervisor(instance.folder.parent, instance.port, config) as first:
        with pytest.raises(SettingsError, match=rf"8123: already running \(pid {first.pid}, since 20\d\d-\S+\)"):
            instance.hold(config)
        owner = instance.owner()
        assert owner is not None
        assert (owner.pid, owner.config) == (first.pid, str(config.absolute()))
    # However it ended, nobody has to clean up before the next.
    assert instance.owner() is None
    assert instance.last_owner() == owner
    instance.hold(config)
    assert [each.port for each in instances({"STARSERVE_STATE": str(instance.folder.parent)})] == [8123]
    assert (instance.folder / "owner").stat().st_mode & 0o777 == 0o600


def test_what_a_dead_instance_left_is_found_recorded_or_not(instance: Instance) -> None:
    state, mark = instance.folder.parent, instance.left.mark()
    with recorded(state, 8123) as known, belonging(mark) as born_later, belonging("f" * 32) as of_another:
        assert instance.clean() == 2
        assert gone_within(known)
        assert gone_within(born_later)
        assert runs(of_another)
        assert instance.clean() == 0


def test_a_folder_that_was_made_again_knows_nothing_of_the_instance_before_it(instance: Instance) -> None:
    with belonging(instance.left.mark()) as healthy:
        for file in instance.folder.iterdir():
            file.unlink()
        assert instance.left.mark() != ""
        assert instance.clean() == 0
        assert runs(healthy)


@pytest.mark.parametrize("script", [_MAP.format("create=True, size=64"), _SEMAPHORE], ids=["memory", "semaphore"])
def test_shared_memory_of_a_dead_process_goes_while_the_others_run(instance: Instance, script: str) -> None:
    ours = SharedMemory(create=True, size=64)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        theirs = Path("/dev/shm") / engine.stdout.readline().strip()
        instance.left.record()
        # Killed with its helper that would tidy up, as when a whole engine dies.
        for process in psutil.Process(engine.pid).children():
            process.kill()
        engine.kill()
        engine.wait()
        assert theirs.exists()
        instance.left.record()
        assert not theirs.exists()
    assert (Path("/dev/shm") / ours.name.lstrip("/")).exists()
    ours.close()
    ours.unlink()


def test_shared_memory_that_somebody_still_maps_stays(instance: Instance, tmp_path: Path) -> None:
    shared = SharedMemory(create=True, size=64)
    path = Path("/dev/shm") / shared.name.lstrip("/")
    command = [sys.executable, "-c", _MAP.format(f"{shared.name!r}")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        instance.left.record()
        for process in psutil.Process(engine.pid).children():
            process.kill()
        engine.kill()
        engine.wait()
        instance.left.record()
        assert path.exists()  # this process maps it
    shared.close()
    shared.unlink()


def test_a_full_disk_is_told_once_and_its_end_once(instance: Instance) -> None:
    said = list[str]()
    steady = Steady(said.append, "the record cannot be written")
    with full_disk(at_bytes=0):
        for _ in range(3):
            steady(instance.left.record)
    for _ in range(3):
        steady(instance.left.record)
    assert said == ["the record cannot be written (File too large); what is served goes on", "it can be written again"]


def test_a_record_that_was_cut_costs_no_cleaning(instance: Instance) -> None:
    with recorded(instance.folder.parent, 8123) as known:
        with full_disk(at_bytes=5), pytest.raises(OSError, match="too large"):
            instance.left.record()
        assert instance.clean() == 1
        assert gone_within(known)


def test_the_log_is_appended_to_and_only_the_last_life_explains_the_end(instance: Instance) -> None:
    for words in ("engine did not start: first", "some other words"):
        with instance.open_log() as log:
            log.write(f"{words}\n".encode())
    assert instance.log.read_text() == "engine did not start: first\nsome other words\n"
    assert "its last words are in" in instance.reason()
    with instance.open_log() as log:
        log.write(b"x\nengine did not start: for lack of room\n")
    assert instance.reason() == "engine did not start: for lack of room"


def test_a_full_log_is_kept_beside_and_the_oldest_is_forgotten(instance: Instance) -> None:
    assert not instance.rotate_log()
    for life in range(OLDER_LOGS + 2):
        with instance.open_log() as log:
            log.write(f"life {life}".encode())
            log.flush()
            os.ftruncate(log.fileno(), LOG_BYTES)  # sparse
        assert instance.rotate_log()
    kept = sorted(instance.folder.glob("serve.log*"))
    assert [file.name for file in kept] == [f"serve.log.{n}" for n in range(1, OLDER_LOGS + 1)]
    with kept[0].open("rb") as newest:
        assert newest.read(6) == f"life {OLDER_LOGS + 1}".encode()
