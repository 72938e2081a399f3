"""`RefusedError`: why a request is not answered, as clients of the OpenAI API understand it."""

import logging
from http import HTTPStatus
from typing import Any

from moesaic.errors import MoesaicError, RequestError
from moesaic.infer.job import BusyError, LateError

_LOG = logging.getLogger("moesaic.serve")


class RefusedError(RequestError):
    """A request that gets an HTTP status instead of an answer.

    Args:
        status: of the answer.
        message: what is wrong and what to do.
        kind: the ``type`` of the error.
        code: a word that programs compare.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code = status, kind, code

    @classmethod
    def of(cls, error: Exception) -> "RefusedError":
        """What a client is told of an error; of one that is not its own, only the kind."""
        if isinstance(error, cls):
            return error
        if isinstance(error, BusyError):
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return cls(status, str(error), "server_error", "overloaded")
        if isinstance(error, LateError):
            return cls(HTTPStatus.GATEWAY_TIMEOUT, str(error), "server_error", "timeout")
        if isinstance(error, MoesaicError):
            return cls(HTTPStatus.BAD_REQUEST, str(error))
        _LOG.error("a request failed", exc_info=error)
        message = f"the server failed on this request ({type(error).__name__}); its log says more"
        return cls(HTTPStatus.INTERNAL_SERVER_ERROR, message, "server_error")

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        told = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        return {"error": told}
