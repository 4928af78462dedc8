import pytest

from fedveil.fl.errors import FedveilError
from fedveil.fl.registry import Registry


def filled() -> Registry[type]:
    registry: Registry[type] = Registry("shape")
    registry.register("square")(int)
    registry.register("circle")(float)
    return registry


def test_a_registered_name_gives_what_was_registered() -> None:
    registry = filled()
    assert registry["square"] is int
    assert "circle" in registry
    assert "line" not in registry
    assert list(registry) == ["circle", "square"]


def test_the_decorator_returns_the_class_itself() -> None:
    class Line: ...

    assert filled().register("line")(Line) is Line


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(FedveilError, match=r"^unknown shape 'cube'; allowed: circle, square$"):
        filled()["cube"]


def test_a_name_is_given_once() -> None:
    registry = filled()
    with pytest.raises(FedveilError, match="shape 'square' is registered twice"):
        registry.register("square")(str)
    assert registry["square"] is int
