from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fedveil.attacks.target import kernels
from fedveil.attacks.target.convolution import convolution
from fedveil.attacks.target.kernels import Geometry, as_convolution, by_images, folded, unfolded
from fedveil.fl.seeding import torch_stream

VICTIMS = 3
sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Geometry, int, int, int]:
    """A geometry, and numbers of images, input and output channels; both ways of `convolution` occur."""
    kernel, dilation = draw(sizes), draw(sizes)
    least = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = (least[0] + draw(st.integers(0, 4)), least[1] + draw(st.integers(0, 4)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    geometry = Geometry(size, kernel, draw(sizes), padding, dilation)
    return geometry, draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 8])), draw(st.sampled_from([2, 9]))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch_stream(0, "convolution", *map(str, shape)), dtype=torch.float64)


@settings(max_examples=40)
@given(case=cases(), own=st.booleans(), many=st.sampled_from([1, 99]))
def test_all_derivatives_are_those_of_the_plain_convolution(
    case: tuple[Geometry, int, int, int], own: bool, many: int
) -> None:
    # Both as many victims are computed and as few are.
    with mock.patch.object(kernels, "_MANY", many):
        compare(case, own)


def compare(case: tuple[Geometry, int, int, int], own: bool) -> None:
    geometry, images, channels, outputs = case
    x = normal(VICTIMS, images, channels, *geometry.size)
    weight, along = normal(outputs, channels, *geometry.kernel), normal(VICTIMS, outputs, channels, *geometry.kernel)
    bias = normal(outputs)
    weights, dims = (weight + 0.1 * along, 0) if own else (weight, None)

    def slopes(convolve: object) -> list[Tensor]:
        def loss(x: Tensor, weight: Tensor) -> Tensor:
            how = geometry.stride, geometry.padding, geometry.dilation
            y: Tensor = convolve(x, weight, bias, *how)  # type: ignore[operator]
            return y.sin().sum()

        def mixed(x: Tensor, weight: Tensor, along: Tensor) -> Tensor:
            found: Tensor = jvp(lambda w: grad(loss)(x, w), (weight,), (along,))[1]
            return found

        def reverse(x: Tensor, weight: Tensor, along: Tensor) -> Tensor:
            found: Tensor = grad(lambda x: jvp(lambda w: loss(x, w), (weight,), (along,))[1])(x)
            return found

        return [
            vmap(loss, in_dims=(0, dims))(x, weights),
            *vmap(grad(loss, argnums=(0, 1)), in_dims=(0, dims))(x, weights),
            vmap(mixed, in_dims=(0, dims, 0))(x, weights, along),
            vmap(reverse, in_dims=(0, dims, 0))(x, weights, along),
        ]

    for mine, theirs in zip(slopes(convolution), slopes(F.conv2d), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(case=cases())
def test_folding_is_the_adjoint_of_unfolding(case: tuple[Geometry, int, int, int]) -> None:
    geometry, images, channels, _ = case
    x = normal(VICTIMS, images, channels, *geometry.size)
    patches = unfolded(x, geometry)
    columns = F.unfold(x[:, 0], geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    torch.testing.assert_close(patches.unflatten(2, (images, -1))[:, :, 0], columns)
    other = normal(*patches.shape)
    torch.testing.assert_close((patches * other).sum(), (x * folded(other, images, geometry)).sum())


@pytest.mark.parametrize("options", [{"groups": 2}, {"padding": "same"}, {"padding": "valid", "stride": 2}])
def test_what_has_no_rule_of_its_own_is_left_to_pytorch(options: dict[str, object]) -> None:
    x, weight = normal(2, 4, 6, 6), normal(4, 4 // int(str(options.get("groups", 1))), 3, 3)
    assert torch.equal(convolution(x, weight, None, **options), F.conv2d(x, weight, None, **options))  # type: ignore[arg-type]


@settings(max_examples=40)
@given(case=cases(), stride=st.integers(1, 3))
def test_the_adjoint_by_the_images_is_a_convolution_of_slopes(
    case: tuple[Geometry, int, int, int], stride: int
) -> None:
    geometry, images, channels, outputs = case
    geometry = geometry._replace(stride=(stride, stride), dilation=(1, 1))
    slope, weight = normal(images, outputs, *geometry.out), normal(outputs, channels, *geometry.kernel)
    torch.testing.assert_close(as_convolution(slope, weight, geometry), by_images(slope, weight, geometry))
