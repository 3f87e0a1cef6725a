"""A Ray that ends within its first seconds is started once more."""

from __future__ import annotations

from pathlib import Path

from tests.stack import Stack, tiny_model, wait_for


def test_ray_is_started_once_more_when_it_ends_while_it_starts(starcoder_folder: Path, tmp_path: Path) -> None:
    with Stack({"models": [tiny_model(starcoder_folder)]}, tmp_path) as stack:
        stack.start()
        wait_for(lambda: "1/3 starting Ray" in stack.said(), within_s=60)
        (driver,) = [p for p in stack.below() if "serve.deploy.local" in p.cmdline()]
        driver.kill()
        stack.ready()
        assert "Ray ended while it started; trying once more" in stack.said()
        with stack.client() as client:
            assert client.get("/health").status_code == 200
