import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedveil.fl.seeding import derive_seed, numpy_stream, seeded_globals, torch_stream

names = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", max_size=8)
paths = st.lists(names | st.integers(-5, 200), max_size=4)


def test_a_seed_is_the_hash_of_its_path_on_every_machine() -> None:
    text = b"7\x1fstr:round\x1fint:3"
    assert derive_seed(7, "round", 3) == int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") // 2
    assert derive_seed(0, "round", 1, "client", 2) == 968473411407277196


@given(st.integers(0, 2**40), paths, st.integers(0, 2**40), paths)
def test_different_paths_have_different_seeds(
    seed: int, path: list[str | int], other: int, other_path: list[str | int]
) -> None:
    left, right = derive_seed(seed, *path), derive_seed(other, *other_path)
    assert (left == right) == (seed == other and path == other_path)
    assert 0 <= left < 2**63


def test_a_number_is_not_its_digits() -> None:
    assert derive_seed(0, 1) != derive_seed(0, "1")
    assert derive_seed(0, 12) != derive_seed(0, 1, 2)
    assert derive_seed(1, 2) != derive_seed(12)


def test_streams_repeat_and_differ_by_path() -> None:
    def draw(*path: str | int) -> list[float]:
        return torch.rand(4, generator=torch_stream(5, *path)).tolist()

    assert draw("a", 1) == draw("a", 1)
    assert draw("a", 1) != draw("a", 2)
    assert torch_stream(5, "a").device.type == "cpu"
    assert numpy_stream(5, "a").random() == numpy_stream(5, "a").random()
    assert numpy_stream(5, "a").random() != numpy_stream(5, "b").random()


def test_streams_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_stream(1, "x"))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_globals_leave_the_global_generator_as_it_was_even_on_an_error() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 2, 1):
        with seeded_globals(seed):
            drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[2] != drawn[1]
    with pytest.raises(ZeroDivisionError), seeded_globals(3):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
