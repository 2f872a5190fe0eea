"""Every error the system raises on purpose.

PDError
├── ConfigError              a flag or a key of the YAML file is wrong
├── WorkloadError            a workload's file cannot be read, or is not what it claims to be
├── ModelError               a model directory cannot be used
│   └── UnsupportedModelError    its architecture is not one we run
├── RequestError             a request cannot be served as asked (an HTTP 4xx)
│   └── RejectedError            it could be served later (429 or 503, with Retry-After)
├── NoFreeBlocksError        a block pool was asked for more than it has
├── WireError                a frame is malformed, foreign, stale or damaged
├── TransferError            a hand-off of blocks failed
└── ClientError              what `pd.Client` raises
    ├── ConnectError             the server cannot be reached
    ├── APIStatusError           the server answered with an error status
    ├── RequestTimeoutError      the server took longer than the timeout
    └── StreamError              a stream ended before its finish reason
"""

from __future__ import annotations


class PDError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(PDError):
    """A flag or a key of the configuration file is wrong."""


class WorkloadError(PDError):
    """A workload's file cannot be read or is not what it claims to be."""


class ModelError(PDError):
    """A model directory cannot be used."""


class UnsupportedModelError(ModelError):
    """The architecture of a model is not one the engine runs."""


class ReplayError(PDError):
    """A recording does not lead to the decisions that were made when it was recorded."""


class RequestError(PDError):
    """A request cannot be served as asked; `param` names the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind


class RejectedError(RequestError):
    """The cell is too busy (429) or not ready (503); `retry_after_s` says when to try again."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 429,
        retry_after_s: float = 1.0,
        code: str = "overloaded",
    ) -> None:
        kind = "rate_limit_error" if status == 429 else "service_unavailable_error"
        super().__init__(message, status=status, code=code, kind=kind)
        self.retry_after_s = retry_after_s


class NoFreeBlocksError(PDError):
    """A block pool was asked for more blocks than are free."""


class WireError(PDError):
    """A frame is malformed, foreign, stale or damaged."""


class TransferError(PDError):
    """A hand-off of blocks failed."""


class ClientError(PDError):
    """Base of what the Python client raises."""


class ConnectError(ClientError):
    """The server cannot be reached."""


class APIStatusError(ClientError):
    """The server answered with an error status."""

    def __init__(self, message: str, *, status: int, body: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class RequestTimeoutError(ClientError):
    """The server took longer than the client's timeout."""


class StreamError(ClientError):
    """A stream ended before its finish reason, or carried an error event."""
