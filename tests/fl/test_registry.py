import pytest

from fedveil.fl.errors import FedveilError
from fedveil.fl.registry import Registry


class Square: ...


class Circle: ...


def filled() -> Registry[type]:
    registry: Registry[type] = Registry("shape")
    registry.register("square")(Square)
    registry.register("circle")(Circle)
    return registry


def test_a_registered_name_gives_what_was_registered() -> None:
    registry = filled()
    assert registry["square"] is Square
    assert "circle" in registry
    assert "line" not in registry
    assert list(registry) == ["circle", "square"]


def test_the_decorator_returns_the_class_itself() -> None:
    class Line: ...

    assert filled().register("line")(Line) is Line


def test_a_class_is_called_as_it_was_registered_unless_it_says_otherwise() -> None:
    class Line: ...

    class Curve(Line): ...

    class Named:
        name = "own"

    registry = filled()
    for name, shape in {"line": Line, "curve": Curve, "named": Named}.items():
        registry.register(name)(shape)
    assert [vars(shape)["name"] for shape in (Line, Curve, Named)] == ["line", "curve", "own"]


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(FedveilError, match=r"^unknown shape 'cube'; allowed: circle, square$"):
        filled()["cube"]


def test_a_name_is_given_once() -> None:
    registry = filled()
    with pytest.raises(FedveilError, match="shape 'square' is registered twice"):
        registry.register("square")(Circle)
    assert registry["square"] is Square


def test_a_class_may_be_defined_anew_where_it_stands() -> None:
    def define() -> type:
        class Line: ...

        return Line

    registry = filled()
    registry.register("line")(define())
    again = registry.register("line")(define())
    assert registry["line"] is again
