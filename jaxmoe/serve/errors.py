"""Errors in OpenAI's form, so that its clients raise what they raise there."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class ApiError(Exception):
    """An answer other than 200: a message that says what was found and expected, and OpenAI's other fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        body = {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        return JSONResponse(body, self.status, dict(self.headers or {}))


def failure() -> ApiError:
    """Of an error that nobody foresaw: what it says may quote what was said."""
    return ApiError(500, "the server failed, expected an answer; its log says where.")
