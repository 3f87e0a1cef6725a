"""Every way in which a request can fail, and what the client is told.

ServeError
├── BadRequest            400 invalid_request_error
│   ├── ContextOverflow   400 context_length_exceeded
│   └── UnknownField      400 unknown_parameter
├── Unauthorized          401 invalid_api_key
├── Forbidden             403 permission_denied
│   └── TenantSuspended   403 tenant_suspended
├── NotFound              404 not_found
│   └── UnknownModel      404 model_not_found
├── MethodNotAllowed      405 method_not_allowed
├── BodyTooSlow           408 request_timeout
├── Conflict              409 conflict             it exists already, or is not in a state for that
├── BodyTooLarge          413 body_too_large
├── UnsupportedCoding     415 unsupported_encoding  a Content-Encoding that this server does not read
├── QueueFull             429 queue_full           too much of this tenant waits already
├── Overloaded            503 overloaded           too much of everybody waits already
├── QueueTimeout          503 queue_timeout        it waited for its turn for as long as it may
├── LimitReached          429 rate_limit_exceeded  requests per minute; knows when it would fit
│   ├── TokensLimited     429 rate_limit_exceeded  tokens per minute
│   ├── ConcurrencyLimited 429 concurrency_limit   what is left is held by the caller's own running requests
│   ├── QueueLimited      429 queue_limit          too many tokens of the caller wait for their first token
│   └── QuotaExhausted    429 insufficient_quota   tokens of the day, budget of the month
├── LimitsUnavailable     503 limits_unavailable   the store of limits is lost, and this class of tenant must wait
├── AdapterUnavailable    503 adapter_unavailable  its files did not pass the check at the engine's start
├── DatabaseUnavailable   503 database_unavailable  of tenants, to administrators; answering goes on without it
├── Stopping              503 server_stopping      the server is being stopped: nothing new is let in
├── Stopped               503 server_stopped       it was stopped while it answered
├── EngineUnavailable     503 engine_unavailable   before the first token: try again
├── EngineLost            503 engine_lost          the engine died while it answered
├── GenerationFailed      500 generation_failed    the engine lives, and gave up this one answer
└── InternalError         500 internal_error

A message names the field and both numbers; it never holds a path, an address, a key or a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class ServeError(Exception):
    """An error that a client may see. `param` is the field to blame, if there is one."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    outcome: ClassVar[str] = "failed"  # label of logs and metrics: a small closed set
    retry_after_s: int | None = None  # whole seconds until a repetition may succeed
    headers: Mapping[str, str] = MappingProxyType({})  # more of the answer's, besides Retry-After

    def __init__(self, message: str, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross a process whole, whatever a subclass's constructor wants."""
        return again, (type(self).__name__, self.told())

    def told(self) -> dict[str, Any]:
        """What `again` makes it from: every field that this error has of its own."""
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in vars(self).items()}

    def body(self) -> dict[str, Any]:
        """The error object in OpenAI's shape, with all four fields."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def again(kind: str, told: Mapping[str, Any]) -> ServeError:
    """The error of this class, by its name here, with these fields. LookupError where there is no such class."""
    found = globals().get(kind)
    if not (isinstance(found, type) and issubclass(found, ServeError)):
        raise LookupError(f"{kind} is no error of starserve's")
    error = found.__new__(found, told["message"], told["param"])
    vars(error).update(told)
    return error


class BadRequest(ServeError):
    status, type, code, outcome = 400, "invalid_request_error", "invalid_value", "refused"


class ContextOverflow(BadRequest):
    code = "context_length_exceeded"


class UnknownField(BadRequest):
    code = "unknown_parameter"


class Unauthorized(ServeError):
    status, type, code, outcome = 401, "authentication_error", "invalid_api_key", "refused"


class Forbidden(ServeError):
    status, type, code, outcome = 403, "permission_error", "permission_denied", "refused"


class TenantSuspended(Forbidden):
    code = "tenant_suspended"


class NotFound(ServeError):
    status, type, code, outcome = 404, "invalid_request_error", "not_found", "refused"


class UnknownModel(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ServeError):
    status, type, code, outcome = 405, "invalid_request_error", "method_not_allowed", "refused"


class BodyTooSlow(ServeError):
    status, type, code, outcome = 408, "invalid_request_error", "request_timeout", "refused"


class Conflict(ServeError):
    status, type, code, outcome = 409, "invalid_request_error", "conflict", "refused"


class BodyTooLarge(ServeError):
    status, type, code, outcome = 413, "invalid_request_error", "body_too_large", "refused"


class UnsupportedCoding(ServeError):
    status, type, code, outcome = 415, "invalid_request_error", "unsupported_encoding", "refused"


class QueueFull(ServeError):
    status, type, code, outcome = 429, "rate_limit_error", "queue_full", "refused"


class Overloaded(ServeError):
    status, code, outcome = 503, "overloaded", "refused"


class QueueTimeout(ServeError):
    status, code, outcome = 503, "queue_timeout", "refused"


class LimitReached(ServeError):
    """`reason`: level and limit, such as `tenant.tokens_per_minute`; `retry_after_s` None: nobody knows, or never."""

    status, type, code, outcome = 429, "requests", "rate_limit_exceeded", "refused"
    only_time_s: float | None = None  # for so long every request would be refused, whatever it is

    def __init__(self, message: str, reason: str, retry_after_s: int | None, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s, self.headers = reason, retry_after_s, headers


class TokensLimited(LimitReached):
    type = "tokens"


class ConcurrencyLimited(LimitReached):
    code = "concurrency_limit"


class QueueLimited(LimitReached):
    type, code = "tokens", "queue_limit"


class QuotaExhausted(LimitReached):
    type, code = "insufficient_quota", "insufficient_quota"


class LimitsUnavailable(ServeError):
    status, code, outcome, retry_after_s = 503, "limits_unavailable", "refused", 5


class AdapterUnavailable(ServeError):
    status, code = 503, "adapter_unavailable"


class DatabaseUnavailable(ServeError):
    status, code, retry_after_s = 503, "database_unavailable", 5


class Stopping(ServeError):
    status, code, outcome, retry_after_s = 503, "server_stopping", "refused", 5


class Stopped(ServeError):
    status, code, retry_after_s = 503, "server_stopped", 5


class EngineUnavailable(ServeError):
    status, code, retry_after_s = 503, "engine_unavailable", 5


class EngineLost(ServeError):
    status, code, outcome, retry_after_s = 503, "engine_lost", "lost", 5


class GenerationFailed(ServeError):
    """Of this request alone. It has no Retry-After: sent again, it may well end the same way."""

    code = "generation_failed"


class InternalError(ServeError):
    pass
