"""What Serve says of a replica that Ray cannot place. Its own words, as Ray 2.60 writes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serve.deploy.placing import unplaceable

SAID = (
    "Deployment 'engine-tiny' in application 'mine' has 1 replicas that have taken more than 30s to be scheduled. This "
    "may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. Resources "
    "required for each replica: {required}, total resources available: {available}. Use `ray status` for more details."
)


@pytest.mark.parametrize(
    ("required", "available", "lacking"),
    [
        ('{"CPU": 2.0, "GPU": 1.0}', '{"CPU": 4.0}', "GPU"),
        ('{"CPU": 2.0, "GPU": 1.0}', '{"CPU": 4.0, "GPU": 0.5}', "GPU"),
        ('{"CPU": 2.0, "GPU": 1.0}', "{}", "CPU, GPU"),
        ('{"CPU": 0.25}', '{"CPU": 0.25}', None),  # only slow
        ("UNKNOWN", "UNKNOWN", None),
    ],
)
def test_what_lacks_is_told_in_rays_words_and_what_is_only_slow_waits(
    required: str, available: str, lacking: str | None
) -> None:
    message = SAID.replace("{required}", required).replace("{available}", available)
    deployments = {"router": SimpleNamespace(message=""), "engine-tiny": SimpleNamespace(message=message)}
    told = unplaceable(SimpleNamespace(deployments=deployments))
    if lacking is None:
        assert told is None
    else:
        assert told is not None
        assert told.startswith(f"Ray cannot place a replica for lack of {lacking}: Deployment 'engine-tiny'")
        assert required in told
