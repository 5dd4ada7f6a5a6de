"""Errors: one tree, messages that help, nothing in them that should stay private."""

import copy
import inspect
import pickle

import pytest

from r2graph import errors
from r2graph.errors import (
    ConfigError,
    EmptyQueryError,
    LimitExceeded,
    MissingExtraError,
    MissingKeyError,
    ModelCallError,
    PlanError,
    R2Error,
    UnknownPriceError,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception)
]
EXAMPLES = [
    PlanError("it is cyclic"),
    UnknownPriceError("m1"),
    MissingKeyError("m1", "OPENAI_API_KEY"),
    MissingExtraError("ChatLocal", "local"),
    EmptyQueryError(),
    ModelCallError("m1", "timeout"),
    LimitExceeded("budget"),
]


def test_every_error_is_an_r2_error() -> None:
    assert len(CLASSES) > 15
    assert all(issubclass(error, R2Error) for error in CLASSES)


def test_the_docstring_shows_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    assert [error.__name__ for error in CLASSES if error.__name__ not in errors.__doc__] == []


def test_what_the_user_got_wrong_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(PlanError, ValueError)
    assert not issubclass(ModelCallError, ValueError)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: R2Error) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_messages_name_the_member_and_the_remedy() -> None:
    assert "OPENAI_API_KEY" in str(MissingKeyError("m1", "OPENAI_API_KEY"))
    assert "'m1'" in str(UnknownPriceError("m1"))
    assert "input_per_mtok" in str(UnknownPriceError("m1"))
    assert "pip install 'r2graph[local]'" in str(MissingExtraError("ChatLocal", "local"))
    assert "'m1'" in str(ModelCallError("m1", "auth"))
    assert "key" in str(ModelCallError("m1", "auth"))
    assert "deadline" in str(LimitExceeded("deadline"))
