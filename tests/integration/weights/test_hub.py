"""A repository is downloaded from a hub by its real client: what was pinned, what is wanted, and what was cut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from serve.settings import SettingsError
from serve.weights.manifest import MANIFEST, prepared_folder, verify
from serve.weights.prepare import prepare
from tests.support.hub import COMMIT, REPOSITORY, Hub
from tests.support.hub_models import in_hub, model_of

MB = 1_000_000
CHUNK = 10 * (1 << 20)  # the library writes so much at a time
BIG = os.urandom(1 << 20) * 25
COMMAND = [sys.executable, "-P", "-m", "serve", "model", "prepare"]


def quiet(_: str) -> None:
    return None


def sums(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / MANIFEST).read_text())["sha256"])


def config(folder: Path) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"models": [in_hub().model_dump(mode="json", exclude_none=True)]}))
    return path


def test_the_command_prepares_a_pinned_commit_and_records_it(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_never-shown"
    environment = {**os.environ, "STARSERVE_CACHE": str(tmp_path / "cache"), "HF_TOKEN": hub.token}
    done = subprocess.run([*COMMAND, str(config(tmp_path))], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = prepared_folder(in_hub(), tmp_path / "cache")
    verify(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST} == hub.files
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["source"]["repository"], manifest["source"]["revision"]) == (REPOSITORY, COMMIT)
    assert f"file {len(hub.files)} of {len(hub.files)}, model.safetensors" in done.stdout
    assert " MB" in done.stdout
    assert not list((tmp_path / "cache" / "downloads").iterdir())
    assert "never-shown" not in done.stdout + done.stderr + (folder / MANIFEST).read_text()
    # The token is for the hub alone, not for the storage to which it redirects.
    assert {a.token for a in hub.asked if a.server == "hub"} == {"Bearer hf_never-shown"}
    assert {a.token for a in hub.asked if a.server == "storage"} == {None}


def test_a_repository_is_prepared_as_its_files_in_a_folder_are(
    hub: Hub, starcoder_folder: Path, tmp_path: Path
) -> None:
    del hub.files["README.md"]
    one, other = (prepare(m, tmp_path, quiet) for m in (in_hub(), model_of({"folder": str(starcoder_folder)})))
    assert sums(one) == sums(other)
    assert len(sums(one)) == len(hub.files)


def test_only_wanted_files_are_fetched_and_no_name_leaves_the_folder(hub: Hub, tmp_path: Path) -> None:
    wanted = set(hub.files)
    for name in ("modeling.py", "../evil.safetensors", "sub/model.safetensors", "/tmp/evil.safetensors", "..",
                 "pytorch_model.bin", "tokenizer.model", ".safetensors", "a b.safetensors"):  # fmt: skip
        hub.files[name] = b"import os"
    folder = prepare(in_hub(convert_pickle=True), tmp_path, quiet)
    assert hub.fetched() == wanted
    assert {p.name for p in folder.iterdir()} == {*wanted, MANIFEST}


def test_a_broken_line_is_taken_up_again_within_the_run(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = BIG
    for reset in (False, True):
        hub.reset, hub.cut = reset, {"model.safetensors": [2 * CHUNK + MB]}
        hub.sent.clear()
        folder = prepare(in_hub(), tmp_path / str(reset), quiet)
        assert (folder / "model.safetensors").read_bytes() == BIG
        assert hub.sent["model.safetensors"] == len(BIG) + MB  # what the library held in memory comes again


def test_a_failed_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = BIG
    hub.cut = {"model.safetensors": [2 * CHUNK + MB, *[0] * 20]}
    with pytest.raises(SettingsError, match=r"cannot be reached .*goes on where it stopped"):
        prepare(in_hub(), tmp_path, quiet)
    (downloads,) = (tmp_path / "downloads").iterdir()
    assert downloads.name == f"owner--tiny-starcoder-{COMMIT}"
    assert (downloads / "model.safetensors.partial").stat().st_size == 2 * CHUNK
    hub.cut.clear()
    hub.sent.clear()
    told = list[str]()
    folder = prepare(in_hub(), tmp_path, told.append)
    assert dict(hub.sent) == {"model.safetensors": len(BIG) - 2 * CHUNK}
    assert any("going on at 21.0 of 26.2 MB" in line for line in told)
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert not downloads.exists()


def test_a_killed_download_leaves_no_process_and_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"], hub.stall_after = BIG, 2 * CHUNK + MB
    environment = {**os.environ, "STARSERVE_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [*COMMAND, str(config(tmp_path))]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    deadline = time.monotonic() + 60
    while "21.0 of 26.2 MB" not in (tmp_path / "said").read_text():
        assert time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    process.kill()
    process.wait()
    assert psutil.wait_procs(below, timeout=10)[1] == []
    hub.stall_after = None
    hub.sent.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dict(hub.sent) == {"model.safetensors": len(BIG) - 2 * CHUNK}
    verify(prepared_folder(in_hub(), tmp_path / "cache"))
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", {"lfs": {"size": 0, "sha256": "f" * 64, "pointerSize": 1}}),
        ("config.json", {"blobId": "f" * 40}),
    ],
)
def test_a_wrong_sum_is_refused_and_the_next_run_begins_the_file_anew(
    name: str, said: dict[str, dict[str, object]], hub: Hub, tmp_path: Path
) -> None:
    if "lfs" in said:
        said["lfs"]["size"] = len(hub.files[name])
    hub.described[name] = said
    with pytest.raises(SettingsError, match=rf"{name} is not what the hub has published \(wrong sum\)"):
        prepare(in_hub(), tmp_path, quiet)
    assert list((tmp_path / "models").iterdir()) == []
    hub.described.clear()
    verify(prepare(in_hub(), tmp_path, quiet))


def test_a_file_longer_than_published_is_refused_and_a_shorter_one_too(hub: Hub, tmp_path: Path) -> None:
    for size, sentence in ((5, "config.json is longer than"), (10_000, "a file is shorter than")):
        hub.described["config.json"] = {"size": size}
        with pytest.raises(SettingsError, match=sentence):
            prepare(in_hub(), tmp_path, quiet)


def test_a_mirror_that_lists_names_only_is_asked_for_each_file(hub: Hub, tmp_path: Path) -> None:
    for name in hub.files:
        hub.described[name] = {"size": None, "blobId": None, "lfs": None}
    verify(prepare(in_hub(), tmp_path, quiet))
    assert {a.method for a in hub.asked if "/resolve/" in a.path} == {"HEAD", "GET"}


def test_too_small_a_disk_is_told_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.described["model.safetensors"] = {"lfs": {"size": 10**15, "sha256": "0" * 64, "pointerSize": 1}}
    with pytest.raises(SettingsError, match=r"needs 1,000,000,\d\d\d MB of disk, [\d,]+ MB are free"):
        prepare(in_hub(), tmp_path, quiet)
    assert hub.fetched() == set()


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (404, "RepoNotFound", r"127\.0\.0\.1 shows no repository owner/tiny-starcoder \(404\)"),
        (401, "", r"shows no repository .*no token was sent; set HF_TOKEN"),
        (401, "GatedRepo", r"is gated \(401\), and no token was sent; set HF_TOKEN"),
        (403, "", r"refuses owner/tiny-starcoder \(403\)"),
        (404, "RevisionNotFound", rf"source\.revision: owner/tiny-starcoder has no commit {COMMIT}"),
        (429, "", r"wants fewer requests \(429\)"),
        (503, "", r"answered 503 for owner/tiny-starcoder"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(status: int, code: str, sentence: str, hub: Hub, tmp_path: Path) -> None:
    hub.refuse = (status, code)
    with pytest.raises(SettingsError, match=sentence) as error:
        prepare(in_hub(), tmp_path, quiet)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("source.")


def test_a_token_without_access_to_a_gated_repository_is_told_but_not_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SettingsError, match=r"is gated \(403\), and the token in use has no access") as error:
        prepare(in_hub(), tmp_path, quiet)
    assert "hf_" not in str(error.value)


def test_another_commit_or_repository_than_the_hub_has_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"has no commit f{40}"):
        prepare(in_hub(revision="f" * 40), tmp_path, quiet)
    with pytest.raises(SettingsError, match="shows no repository owner/other"):
        prepare(in_hub(repository="owner/other"), tmp_path, quiet)
    with pytest.raises(SettingsError, match="not a repository's name"):
        prepare(in_hub(repository="../../etc"), tmp_path, quiet)


def test_a_hub_that_cannot_be_reached_is_told_within_seconds(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        port = silent.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}", "http://name.invalid", "nonsense", "http://127.0.0.1:9"):
            monkeypatch.setenv("HF_ENDPOINT", address)
            began = time.monotonic()
            with pytest.raises(SettingsError, match=r"cannot be reached|does not answer as a hub"):
                prepare(in_hub(), tmp_path, quiet)
            assert time.monotonic() - began < 20
    hub.down = True
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    with pytest.raises(SettingsError, match="cannot be reached"):
        prepare(in_hub(), tmp_path, quiet)


def test_what_is_no_hub_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuse = (200, "")
    with pytest.raises(SettingsError, match="does not answer as a hub does"):
        prepare(in_hub(), tmp_path, quiet)
