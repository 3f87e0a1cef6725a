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
├── AdapterUnavailable    503 adapter_unavailable  its files did not pass the check at the engine's start
├── DatabaseUnavailable   503 database_unavailable  of tenants, to administrators; answering goes on without it
├── EngineUnavailable     503 engine_unavailable   before the first token: try again
├── EngineLost            503 engine_lost          the engine died while it answered
└── InternalError         500 internal_error

A message names the field and both numbers; it never holds a path, an address, a key or a prompt.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServeError(Exception):
    """An error that a client may see. `param` is the field to blame, if there is one."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    outcome: ClassVar[str] = "failed"  # label of logs and metrics: a small closed set
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The error object in OpenAI's shape, with all four fields."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


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


class AdapterUnavailable(ServeError):
    status, code = 503, "adapter_unavailable"


class DatabaseUnavailable(ServeError):
    status, code, retry_after_s = 503, "database_unavailable", 5


class EngineUnavailable(ServeError):
    status, code, retry_after_s = 503, "engine_unavailable", 5


class EngineLost(ServeError):
    status, code, outcome, retry_after_s = 503, "engine_lost", "lost", 5


class InternalError(ServeError):
    pass
