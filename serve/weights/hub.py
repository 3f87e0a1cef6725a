"""Download of one commit of a hub's repository, in a process of its own (`python -m serve.weights.hub`).

Of its own, because huggingface_hub reads HF_HUB_OFFLINE when it is imported. Files are fetched with the library's
`http_get`: its `hf_hub_download` begins anew after an interruption (2.4), and half of 31 GB is worth keeping.
A file is named NAME.partial until its size and sum are right.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

from serve.settings import SettingsError
from serve.weights import child, disk
from serve.weights.child import Progress
from serve.weights.refusals import AGAIN, sentences
from serve.weights.wanted import choose

RESETS = 3  # connections that break in a row, without a new byte, until we give up


class Listed(NamedTuple):
    """A file as the hub publishes it. `sha256` is that of a large file, `git_sha1` git's sum of a small one."""

    name: str
    url: str
    size: int
    sha256: str | None
    git_sha1: str | None


def download(repository: str, revision: str, folder: Path, convert_pickle: bool, progress: Progress) -> None:
    """Bring the wanted files of a commit into `folder`. Raises SettingsError, one sentence."""
    with sentences(repository, revision):
        files = _listed(repository, revision, convert_pickle)
        total = sum(f.size for f in files)
        kept = sum(_kept(folder, f) for f in files)
        converted = sum(f.size for f in files if f.name.endswith(".bin"))
        disk.require(folder, total - kept + converted, "source.repository")
        went_on = f", {_mb(kept)} MB of it are here" if kept else ""
        progress(f"{repository}: {len(files)} files, {_mb(total)} MB{went_on}")
        for number, file in enumerate(files, 1):
            _fetch(file, folder, f"file {number} of {len(files)}, {file.name}", progress)


def _listed(repository: str, revision: str, convert_pickle: bool) -> list[Listed]:
    """What to download, from one request to the hub. Fails after HF_HUB_ETAG_TIMEOUT (10 s) of silence."""
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=timeout)
    if info.sha != revision:
        raise SettingsError(f"source.revision: the hub gives another commit of {repository} than {revision}")
    files = {s.rfilename: s for s in info.siblings or []}
    wanted = choose(files, convert_pickle, "source.repository")
    return [_described(files[name], repository, revision) for name in wanted.every]


def _described(file: RepoSibling, repository: str, revision: str) -> Listed:
    url = hf_hub_url(repository, file.rfilename, revision=revision)
    if file.lfs is not None:
        return Listed(file.rfilename, url, file.lfs.size, file.lfs.sha256, None)
    if file.size is not None and file.blob_id is not None:
        return Listed(file.rfilename, url, file.size, None, file.blob_id)
    # A mirror whose listing is short may still answer as the hub does when it is asked for the one file.
    head = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    etag = head.etag or ""
    if head.size is None:
        raise SettingsError(f"source.repository: the hub does not tell the size of {file.rfilename}")
    sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag) else None
    return Listed(file.rfilename, url, head.size, sha256, etag if re.fullmatch("[0-9a-f]{40}", etag) else None)


def _fetch(file: Listed, folder: Path, title: str, progress: Progress) -> None:
    place, partial = folder / file.name, _partial(folder, file.name)
    if not place.exists():
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise SettingsError(f"source.repository: {file.name} is larger than the 50 GB that the hub sends at once")
        kept = _kept(folder, file)
        progress(f"{title}: {f'going on at {_mb(kept)} of ' if kept else ''}{_mb(file.size)} MB")
        with (
            partial.open("ab") as sink,
            child.telling(progress, lambda: f"{title}: {_mb(partial.stat().st_size)} of {_mb(file.size)} MB"),
        ):
            if kept > file.size:
                sink.truncate(0)
            _stream(file, partial, sink)
    checked = place if place.exists() else partial
    if not _is_right(file, checked):
        checked.unlink()
        raise SettingsError(f"source.repository: {file.name} is not what the hub has published (wrong sum); the file "
                            f"was removed; {AGAIN}")  # fmt: skip
    checked.replace(place)
    if file.sha256 is None and file.git_sha1 is None:
        progress(f"{title}: the hub publishes no sum of it, so only its size was checked")


def _stream(file: Listed, partial: Path, sink: IO[bytes]) -> None:
    # http_get itself goes on after timeouts and early ends, but not after a reset.
    resets, before = 0, -1
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # a compressed file could not be resumed
    bounded = cast(BinaryIO, _Bounded(sink, file))
    while True:
        here = partial.stat().st_size
        resets, before = (resets + 1 if here == before else 0), here
        try:
            return http_get(file.url, bounded, resume_size=here, headers=headers, expected_size=file.size)
        except httpx2.NetworkError as e:
            if isinstance(e, httpx2.ConnectError) or resets == RESETS:
                raise
            time.sleep(1)


class _Bounded:
    """A file that takes no more bytes than were announced, and keeps each chunk even if we are killed."""

    def __init__(self, file: IO[bytes], listed: Listed) -> None:
        self._file, self._listed = file, listed
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate

    def write(self, chunk: bytes) -> int:
        if self._file.tell() + len(chunk) > self._listed.size:
            self._file.truncate(0)
            raise SettingsError(f"source.repository: {self._listed.name} is longer than the hub has published")
        written = self._file.write(chunk)
        self._file.flush()
        return written


def _is_right(file: Listed, path: Path) -> bool:
    """Size, and whichever sum is known. Reads the whole file."""
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        if file.sha256 is not None:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        git = hashlib.file_digest(content, lambda: hashlib.sha1(b"blob %d\0" % file.size)).hexdigest()
        return file.git_sha1 is None or git == file.git_sha1


def _kept(folder: Path, file: Listed) -> int:
    """Bytes of a file that an earlier run has left."""
    return next((p.stat().st_size for p in (folder / file.name, _partial(folder, file.name)) if p.exists()), 0)


def _partial(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial"


def _mb(size: int) -> str:
    return f"{size / disk.MEGABYTE:,.1f}"


def main(arguments: Sequence[str]) -> None:
    repository, revision, folder, pickles = arguments
    download(repository, revision, Path(folder), pickles == "convert", print)


if __name__ == "__main__":
    child.begin(main)
