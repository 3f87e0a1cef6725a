"""Work in a process of its own, whose sentences are relayed: for what must not share our memory or our secrets.

The child prints progress to stdout, one sentence a line. When it refuses, its last line on stderr is the reason
and its status is REFUSED. It dies when its parent dies, so no work goes on unseen and unlocked.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from serve.settings import SettingsError

Progress = Callable[[str], None]
REFUSED = 3
TELL_EVERY_S = 5.0
_PR_SET_PDEATHSIG = 1


def run(module: str, arguments: Sequence[str], environment: Mapping[str, str], progress: Progress) -> None:
    """Wait for `python -m module arguments`. Raises SettingsError when it refuses, fails or is killed."""
    # -P: a file named torch.py in the current folder, which may be a model's, must not be imported.
    command = [sys.executable, "-P", "-u", "-m", module, *arguments]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            text=True, errors="replace",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    progress(_printable(line))
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    last = _printable(lines[-1]) if lines else ""
    if process.returncode == REFUSED:
        raise SettingsError(last)
    if process.returncode < 0:
        reason = "; that is most often too little memory" if process.returncode == -signal.SIGKILL else ""
        raise SettingsError(f"source: {module} was ended by {signal.Signals(-process.returncode).name}{reason}")
    if process.returncode:
        raise SettingsError(f"source: {module} failed: {last}")


def begin(work: Callable[[list[str]], None]) -> None:
    """The child's side: do the work with the command's arguments, and refuse in the way that `run` understands."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        work(sys.argv[1:])
    except SettingsError as e:
        print(" ".join(str(e).split()), file=sys.stderr)
        sys.exit(REFUSED)


@contextmanager
def telling(progress: Progress, sentence: Callable[[], str], every_s: float = TELL_EVERY_S) -> Iterator[None]:
    """Say how far the work is, again and again until it is done, also when it stands still."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(every_s):
            progress(sentence())

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _printable(line: str) -> str:
    """What came from a file of strangers may not steer a terminal, nor fill it."""
    return "".join(c if c.isprintable() else "?" for c in line.rstrip("\n"))[:1000]
