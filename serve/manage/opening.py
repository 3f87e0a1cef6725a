"""Which deployment a command acts on, and its store.

In this order: the YAML that is named (`--config`, or STARSERVE_CONFIG), the port that is named
(STARSERVE__HTTP__PORT), the only instance that runs. Where that leaves a doubt the command refuses, and says what there
is. Looking makes nothing.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.deploy.instance import Instance, Owner, instances
from serve.errors import ServeError
from serve.manage.telling import refuse
from serve.settings import ENVIRONMENT_PREFIX, Settings, SettingsError, load
from serve.tenants.development import make_store, open_store
from serve.tenants.store import Store

PORT = f"{ENVIRONMENT_PREFIX}HTTP__PORT"


def config_option(without: str) -> Any:
    """The option `--config`, with `without` as the help on what a command acts on when it is not given."""
    return typer.Option(
        "--config",
        "-c",
        envvar="STARSERVE_CONFIG",
        default_factory=lambda: None,
        show_default=False,
        help=f"The deployment's YAML; without one, {without}.",
    )


Config = Annotated[Path | None, config_option("the deployment that runs on this machine")]
ConfigToo = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", default_factory=lambda: None, show_default=False, help="The same as --config."),
]


class Deployment:
    """What a command acts on: settings, and the instance's folder on this machine."""

    def __init__(self, settings: Settings, is_named: bool) -> None:
        """`is_named`: by its YAML, so that a command may make what is not there yet."""
        self.settings, self.is_named = settings, is_named
        self.instance = Instance(settings.http.port)

    @property
    def folder(self) -> Path:
        return self.instance.folder

    def check_served(self) -> None:
        """SettingsError where a database or secret of this machine, which this deployment has, was never made."""
        files, url = [self.settings.database.pepper_in(self.folder)], self.settings.database.url_in(self.folder)
        if url.startswith("sqlite"):
            files.append(Path(url.removeprefix("sqlite:///").partition("?")[0]))
        if not all(file.exists() for file in files):
            raise SettingsError(f"nothing was ever served on port {self.settings.http.port}; {what_there_is()}")

    def open(self, *, makes: bool) -> Store:
        """The store. `makes`: also one that is not there yet, if the command names the deployment."""
        if makes and self.is_named:
            self.instance.make()
            return make_store(self.settings.database, self.folder)
        self.check_served()
        return open_store(self.settings.database, self.folder)


def deployment(
    config: Path | None, other: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Deployment:
    """The one that is meant. `other`: named in another place of the command line. SettingsError: it is in doubt."""
    if named := one_config(config, other, environment):
        return Deployment(load(named, environment), True)
    port = environment.get(PORT)
    known = [instance for instance in instances(environment) if port in (None, str(instance.port))]
    meant = known if port else [instance for instance in known if instance.owner()]
    if len(meant) != 1:
        what = f"nothing was ever served on port {port}" if port else "which deployment? name its YAML with --config"
        raise SettingsError(f"{what}; {what_there_is(environment)}")
    owner, running = meant[0].last_owner(), meant[0].owner()
    if owner is None:
        raise SettingsError(f"which deployment is on port {meant[0].port}? name its YAML with --config")
    given = {**(_given_to(running) if running else {}), **_ours(environment), PORT: str(meant[0].port)}
    return Deployment(load(Path(owner.config), given), False)


def one_config(config: Path | None, other: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The YAML that is named as an option or by its place. What is typed wins over the environment."""
    if config and other and config != other and str(config) != environment.get("STARSERVE_CONFIG"):
        raise SettingsError(f"two deployments are named, {config} and {other}")
    return other or config


def what_there_is(environment: Mapping[str, str] = os.environ) -> str:
    """The end of a sentence: which instances run on this machine, and which ran."""
    known = instances(environment)
    running = [instance.port for instance in known if instance.owner()]
    stopped = [instance.port for instance in known if instance.port not in running]
    of_kind = {"running": running, "stopped": stopped}
    told = [f"{kind}: {', '.join(map(str, ports))}" for kind, ports in of_kind.items() if ports]
    return "; ".join(told) or "nothing runs here"


@contextmanager
def opened(
    config: Path | None, *, makes: bool = False, other: Path | None = None
) -> Iterator[tuple[Deployment, Store]]:
    """The deployment and its store. What goes wrong is said in a sentence; exit status 2."""
    with plainly():
        meant = deployment(config, other)
        store = meant.open(makes=makes)
        try:
            yield meant, store
        finally:
            store.close()


@contextmanager
def plainly() -> Iterator[None]:
    """What cannot be done, as a sentence instead of a traceback."""
    try:
        yield
    except (SettingsError, ServeError) as e:
        refuse(str(e))
    except UnicodeEncodeError:
        refuse("what was typed is not valid UTF-8")
    except OSError as e:
        refuse(f"{e.filename or 'this machine'}: {e.strerror}")


def actor() -> str:
    """Who is named in the audit log."""
    return f"command line: {getpass.getuser()}"


def _given_to(owner: Owner) -> dict[str, str]:
    """The settings that a running supervisor got by its environment."""
    try:
        raw = Path(f"/proc/{owner.pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return _ours(dict(pair.split("=", 1) for pair in raw.split("\0") if "=" in pair))


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(ENVIRONMENT_PREFIX)}
