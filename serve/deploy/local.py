"""The supervisor of one machine, in the foreground: it starts the driver, watches, and takes all of it down again.

It imports no Ray. It is the subreaper of everything below, so that no orphan escapes it, and it records ids and start
times, so that the next start can clean up after `kill -9`. The driver (`serve.deploy.driver`) holds Ray, and ends what
it serves in order when it is told to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serve.deploy.driver import READY, STARTING_RAY
from serve.deploy.environment import PRIVATE_PORTS, environment_of
from serve.deploy.instance import Instance, claim_ports
from serve.deploy.leftovers import MARK, end_below, reap_orphans
from serve.settings import Settings

STOP_WITHIN_S = 8.0  # given to an orderly end, besides the answers; then what is left is killed by its id
SETTLE_WITHIN_S = 25.0  # given besides to routers, to write down what cut answers cost; mostly they take a second
RECORD_EVERY_S = 1.0
TELL_EVERY_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36
Say = Callable[[str], None]


def up(config: Path, settings: Settings, instance: Instance, say: Say, on_ready: Callable[[], None]) -> int:
    """Run until a signal or until the driver ends. Returns the exit status."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: signals.append(n))
    for last_try in (False, True):
        stage = Run(config, settings, instance, signals, say).run(on_ready)
        if signals or last_try or stage != STARTING_RAY:
            break
        # Seen once in some twenty starts of two instances at a time: Ray's raylet dies within its first seconds.
        _calmly(lambda: say("Ray ended while it started; trying once more"))
    if not signals:
        say(instance.reason())
    return 0 if signals else 1


class Run:
    """One life of the driver, and the end of all that it left."""

    def __init__(self, config: Path, settings: Settings, instance: Instance, signals: list[int], say: Say) -> None:
        self._config, self._settings, self._instance, self._signals = config, settings, instance, signals
        self._say: Say = lambda sentence: _calmly(lambda: say(sentence))
        self._books = Steady(self._say, "the record of what runs, or the log, cannot be written")

    def run(self, on_ready: Callable[[], None]) -> str:
        """Returns the last stage that it reached."""
        instance = self._instance
        with claim_ports(PRIVATE_PORTS) as claim:
            driver = self._start_driver(claim.getsockname()[1] - PRIVATE_PORTS + 1)
            self._watch(driver, on_ready)
            self._books(instance.left.record)
            if self._signals:
                self._stop(driver)
                self._books(instance.left.record)  # what was born while we waited
            stage = instance.stage()
            end_below()
            instance.clean()
        return stage

    def _start_driver(self, low: int) -> subprocess.Popen[bytes]:
        instance = self._instance
        environment = environment_of(self._settings, instance, low)
        with instance.open_log() as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.deploy.driver", str(self._config)],
                env={**os.environ, **environment, MARK: instance.left.mark()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A terminal's Ctrl-C goes to the whole group; only we may decide what it means.
                start_new_session=True,
            )

    def _watch(self, driver: subprocess.Popen[bytes], on_ready: Callable[[], None]) -> None:
        """Tell each stage of the start, and record what runs, until a signal or the driver's end."""
        began, recorded, told, stage = time.monotonic(), 0.0, 0.0, ""
        while driver.poll() is None and not self._signals:
            now = time.monotonic()
            if now - recorded > RECORD_EVERY_S:
                recorded = now
                self._books(lambda: self._keep_books(driver))
                reap_orphans(driver.pid)
            reached = self._instance.stage()
            if reached == READY and stage != READY:
                self._say(f"ready after {now - began:.0f} s")
                _calmly(on_ready)
            elif reached != READY and (reached != stage or now - told > TELL_EVERY_S):
                told = now
                self._say(f"{reached} ({now - began:.0f} s)")
            stage = reached
            time.sleep(0.25)

    def _keep_books(self, driver: subprocess.Popen[bytes]) -> None:
        self._instance.left.record()
        if self._instance.stage() == READY and self._instance.rotate_log():
            driver.send_signal(signal.SIGHUP)

    def _stop(self, driver: subprocess.Popen[bytes]) -> None:
        answers_s, deadline = self._settings.router.stop_s, time.monotonic() + STOP_WITHIN_S
        if self._instance.stage() == READY:
            deadline += answers_s + SETTLE_WITHIN_S
        self._say(f"stopping; answers may go on for {answers_s:g} s; press Ctrl-C again to stop at once")
        driver.terminate()
        while driver.poll() is None and time.monotonic() < deadline and len(self._signals) < 2:
            time.sleep(0.05)


class Steady:
    """Does, again and again, what may fail for a while, as on a full disk. Says it once, and once when it is over."""

    def __init__(self, say: Say, what: str) -> None:
        self._say, self._what, self._fails = say, what, False

    def __call__(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as e:
            if not self._fails:
                self._say(f"{self._what} ({e.strerror}); what is served goes on")
            self._fails = True
        else:
            if self._fails:
                self._say("it can be written again")
            self._fails = False


def _calmly(act: Callable[[], None]) -> None:
    """What is said may go into a file on the disk that is full."""
    with suppress(OSError):
        act()
