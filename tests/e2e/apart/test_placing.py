"""What Ray cannot place does not wait for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.stack import Stack, tiny_model

GPU = "#!/bin/sh\necho '0, GPU-aaaa, 81559'\n"  # as NVIDIA's tool would tell of a GPU that Ray then does not find


@pytest.mark.full
def test_a_replica_without_its_gpu_ends_the_start_with_rays_own_reason(starcoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text(GPU)
    (tmp_path / "nvidia-smi").chmod(0o755)
    model = tiny_model(starcoder_folder, device="gpu", dtype="bfloat16")
    with Stack({"models": [model]}, tmp_path / "cache") as stack:
        stack.environment["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        assert stack.start().process.wait(150) == 1
        assert "Ray cannot place a replica for lack of GPU: Deployment 'engine-tiny'" in stack.said()
        assert '"GPU": 1' in stack.said()
