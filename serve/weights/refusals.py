"""Why a hub does not give a repository, in one sentence each that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from serve.settings import SettingsError

AGAIN = "run the command again, and it goes on where it stopped"


@contextmanager
def sentences(repository: str, revision: str) -> Iterator[None]:
    """Every failure becomes one sentence. The library's own text is left out: it may quote a header."""
    hub = urlsplit(constants.ENDPOINT).hostname or "HF_ENDPOINT"
    try:
        yield
    except SettingsError:
        raise
    except HFValidationError:
        raise SettingsError(f"source.repository: {repository} is not a repository's name, such as owner/name") from None
    except HfHubHTTPError as e:
        raise SettingsError(_answered(e, hub, repository, revision)) from None
    except httpx2.TransportError as e:
        raise SettingsError(f"source.repository: {hub} cannot be reached ({type(e).__name__}); look at the network and "
                            f"at HF_ENDPOINT; {AGAIN}") from None  # fmt: skip
    except OSError as e:
        reason = e.strerror or "a file is shorter than the hub has published"
        raise SettingsError(f"source.repository: {reason}; {AGAIN}") from None
    except Exception as e:  # an answer that is not a hub's: not JSON, or without what a hub tells
        raise SettingsError(f"source.repository: {hub} does not answer as a hub does ({type(e).__name__}); look at "
                            "HF_ENDPOINT") from None  # fmt: skip


def _answered(error: HfHubHTTPError, hub: str, repository: str, revision: str) -> str:
    status, token = error.response.status_code, get_token()
    access = "the token in use has no access to it" if token else "no token was sent; set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"source.revision: {repository} has no commit {revision}"
    if isinstance(error, GatedRepoError):
        return (f"source.repository: {repository} is gated ({status}), and {access}; accept its conditions on {hub} "
                "with the account that HF_TOKEN belongs to")  # fmt: skip
    if isinstance(error, RemoteEntryNotFoundError):
        return f"source.repository: {repository} lists a file that {hub} does not have"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return f"source.repository: {hub} shows no repository {repository} ({status}); if it is private: {access}"
    if status == 403:
        return f"source.repository: {hub} refuses {repository} (403): {access}"
    if status == 429:
        return f"source.repository: {hub} wants fewer requests (429); wait some minutes; {AGAIN}"
    return f"source.repository: {hub} answered {status} for {repository}; {AGAIN}"
