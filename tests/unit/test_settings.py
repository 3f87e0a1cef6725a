"""One YAML, one frozen object; every mistake is told by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from serve import limit_settings, model_settings, services, settings
from serve.settings import Settings, SettingsError, load

CONFIGS = Path(__file__).parent.parent.parent / "configs"
GOOD = """
models:
  - name: m
    source: {folder: /nowhere}
    context_tokens: 512
    engine: {device: cpu, kv_cache_gib: 1}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load(path, {}).models


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("context_tokens", "contxt_tokens"),
            "models.0.contxt_tokens: unknown setting; did you mean `context_tokens`?",
        ),
        (("kv_cache_gib", "kv_cache_gb"), "engine.kv_cache_gb: unknown setting; did you mean `kv_cache_gib`?"),
        (("512", "-1"), "models.0.context_tokens"),
        (("{folder: /nowhere}", "{}"), "exactly one of package, folder, repository"),
        (("{folder: /nowhere}", "{repository: a/b, revision: main}"), "40 hex digits"),
        (("models:", "model:"), "model: unknown setting; did you mean `models`?"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(write(tmp_path, GOOD.replace(*change)), {})
    assert sentence in str(error.value)


def test_the_environment_overrides_one_field(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load(path, {"STARSERVE__HTTP__PORT": "9001"}).http.port == 9001
    with pytest.raises(SettingsError, match=r"http\.prot"):
        load(path, {"STARSERVE__HTTP__PROT": "9001"})


def test_every_field_has_a_sentence() -> None:
    modules = (settings, model_settings, limit_settings, services)
    classes = [v for module in modules for v in vars(module).values() if isinstance(v, type)]
    rooms = {room for room in classes if issubclass(room, BaseModel)}
    bare = [
        f"{room.__name__}.{name}"
        for room in rooms
        for name, field in room.model_fields.items()
        if not field.description and field.annotation not in rooms and name != "models"
    ]
    assert len(rooms) > 10
    assert bare == []


def test_settings_are_frozen(tmp_path: Path) -> None:
    loaded: Settings = load(write(tmp_path, GOOD), {})
    with pytest.raises(ValueError, match="frozen"):
        loaded.name = "other"  # type: ignore[misc]
