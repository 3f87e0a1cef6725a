"""Errors cross processes whole: pickled by Ray, or as a failure on an engine's stream."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve import errors
from serve.deploy.handle import Failure
from serve.errors import LimitReached, ServeError


def every(kind: type[ServeError] = ServeError) -> Iterator[type[ServeError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every(below)


def made(kind: type[ServeError]) -> ServeError:
    if not issubclass(kind, LimitReached):
        return kind("because", "model", 7)
    error = kind("because", "tenant.tokens_per_minute", 7, {"x-ratelimit-limit-tokens": "600"})
    error.only_time_s = 2.5
    return error


def pickled(error: ServeError) -> Any:
    return pickle.loads(pickle.dumps(error))


def failed(error: ServeError) -> ServeError:
    failure: Failure = pickle.loads(pickle.dumps(Failure.of(error)))
    return failure.error()


@pytest.mark.parametrize("cross", [pickled, failed])
@pytest.mark.parametrize("kind", list(dict.fromkeys(every())))
def test_every_error_crosses_a_process_with_all_that_it_tells(
    kind: type[ServeError], cross: Callable[[ServeError], ServeError]
) -> None:
    error = made(kind)
    there = cross(error)
    assert type(there) is kind
    assert vars(there) == vars(error)
    assert (str(there), there.body(), there.retry_after_s) == ("because", error.body(), 7)
    assert dict(there.headers) == dict(error.headers)


def test_what_is_no_error_of_ours_is_not_made() -> None:
    for name in ("Any", "annotations", "Exception", "nothing", "again"):
        with pytest.raises(LookupError):
            errors.again(name, {"message": "", "param": None})
