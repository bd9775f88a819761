"""Errors: one for each status of the contract, whatever came with it."""

import json
import pickle

import pytest

from losseval import errors

STATUSES = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    404: errors.NotFoundError,
    405: errors.MethodNotAllowedError,
    406: errors.NotAcceptableError,
    408: errors.RequestTimeoutError,
    413: errors.LimitExceededError,
    415: errors.UnsupportedMediaTypeError,
    422: errors.UnprocessableError,
    431: errors.HeadersTooLargeError,
    500: errors.InternalServerError,
    503: errors.ServiceUnavailableError,
    504: errors.DeadlineExceededError,
    429: errors.APIStatusError,
    502: errors.APIStatusError,
}
PROBLEM = {"type": "/problems/overloaded", "status": 503, "code": "overloaded", "detail": "Too much to do."}


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_each_status_has_its_class(status: int, kind: type[errors.APIStatusError]) -> None:
    error = errors.APIStatusError.of(status, json.dumps(PROBLEM).encode(), "id")
    assert type(error) is kind
    assert (error.status_code, error.problem, error.code, error.request_id) == (status, PROBLEM, "overloaded", "id")
    assert str(error) == f"{status} overloaded: Too much to do. (request id)"


@pytest.mark.parametrize(
    "body",
    [b"<html><body>502 Bad Gateway</body></html>" * 100, b"", b"\xff\xfe\x00", b"[1, 2]", b"null", b"[" * 100_000],
    ids=["html", "empty", "binary", "list", "null", "deep"],
)
def test_a_body_without_a_problem_is_survived(body: bytes) -> None:
    error = errors.APIStatusError.of(502, body, "id")
    assert error.code == ""
    assert len(error.problem["detail"]) <= 200
    assert str(error).startswith("502 ")


@pytest.mark.parametrize(
    "error",
    [
        errors.APIStatusError.of(413, b'{"code": "limit_exceeded", "limit": 3}', "id"),
        errors.APIStatusError.of(502, b"<html>", "id"),
        errors.APIConnectionError("refused", "id"),
        errors.APITimeoutError("late", "id"),
        errors.APIResponseError("html", "id"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: errors.LossevalError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_the_tree_is_as_documented() -> None:
    assert issubclass(errors.APITimeoutError, errors.APIConnectionError)
    assert issubclass(errors.APIConnectionError, errors.LossevalError)
    assert issubclass(errors.APIStatusError, errors.LossevalError)
    for name in vars(errors):
        if name.endswith("Error"):
            assert name in str(errors.__doc__)
