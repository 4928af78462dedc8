import math

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F

from fedveil.fl.errors import FedveilError
from fedveil.fl.models import MODELS, ModelSpec, build_model, init_model, model_on
from fedveil.fl.models.norms import BatchNorm2d

torch.set_num_threads(1)

SMALL = {"lenet": 12, "convnet": 4, "mlp": 4, "resnet18": 4, "resnet20": 4}
VARIANTS = [(name, norm) for name in SMALL for norm in MODELS[name].norms]


def spec(name: str, norm: str | None = None, shape: tuple[int, int, int] = (1, 16, 16), classes: int = 3) -> ModelSpec:
    return ModelSpec(name, shape, classes, norm, SMALL[name])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def functional(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    replace_all_batch_norm_modules_(model)
    return {k: v.detach() for k, v in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 20), (3, 72, 72)])
def test_logits_have_one_column_per_class(name: str, norm: str, shape: tuple[int, int, int]) -> None:
    assert build_model(spec(name, norm, shape, classes=5))(images(2, shape)).shape == (2, 5)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_smallest_image_is_allowed_and_a_smaller_one_is_not(name: str) -> None:
    side = MODELS[name].smallest_side
    assert build_model(spec(name, None, (1, side, side)))(images(2, (1, side, side))).isfinite().all()
    with pytest.raises(FedveilError, match=f"at least 1 channel and {side}x{side} pixels"):
        build_model(spec(name, None, (1, side, side - 1)))


def test_lenet_is_that_of_the_dlg_paper() -> None:
    model = build_model(ModelSpec("lenet", (3, 32, 32), 100))
    # 3 * 12 * 25 + 12, twice 12 * 12 * 25 + 12, and 768 * 100 + 100.
    assert parameters(model) == 912 + 2 * 3612 + 76900
    values = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert -0.5 <= values.min() < -0.49
    assert 0.49 < values.max() <= 0.5
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(12**-0.5, abs=0.01)
    assert sum(isinstance(m, nn.Sigmoid) for m in model.modules()) == 3


def test_convnet_has_three_pooled_stages() -> None:
    model = build_model(ModelSpec("convnet", (1, 28, 28), 2, norm="none"))
    # Convolutions 1-32, 32-64, 64-128 with biases; 3 x 3 x 128 features.
    assert parameters(model) == (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (1152 * 2 + 2)


def test_large_resnet18_is_torchvisions() -> None:
    ours = build_model(ModelSpec("resnet18", (3, 96, 96), 10, norm="batch"))
    theirs = torchvision.models.resnet18(num_classes=10)
    state = theirs.state_dict()
    assert parameters(ours) == parameters(theirs)
    ordered = sorted(state, key=lambda name: (0 if name.startswith(("conv1", "bn1")) else 1, list(state).index(name)))
    translation = zip(ours.state_dict(), ordered, strict=True)
    ours.load_state_dict({mine: state[his] for mine, his in translation})
    x = images(2, (3, 96, 96))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_resnet20_has_the_papers_size() -> None:
    # He et al. 2015, table 6: 0.27 M.
    assert parameters(build_model(ModelSpec("resnet20", (3, 32, 32), 10, norm="batch"))) == 269722


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_normalisation_is_the_one_that_was_asked_for(name: str, norm: str) -> None:
    kinds = {type(m) for m in build_model(spec(name, norm)).modules()} & {BatchNorm2d, nn.GroupNorm}
    assert kinds == {"none": set(), "group": {nn.GroupNorm}, "batch": {BatchNorm2d}}[norm]


@pytest.mark.parametrize("name", list(MODELS))
def test_without_a_norm_the_model_takes_its_own(name: str) -> None:
    default, named = init_model(spec(name), 0), init_model(spec(name, MODELS[name].norms[0]), 0)
    torch.testing.assert_close(default, named, rtol=0, atol=0)


@pytest.mark.parametrize("name", list(MODELS))
def test_first_weights_are_a_function_of_the_seed_and_disturb_nothing(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    first, again, other = init_model(spec(name), 7), init_model(spec(name), 7), init_model(spec(name), 8)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_first_weights_load_into_a_model(name: str, norm: str) -> None:
    weights = init_model(spec(name, norm), 5)
    assert all(value.is_floating_point() and not value.requires_grad for value in weights.values())
    model = build_model(spec(name, norm))
    model.load_state_dict(weights)
    loaded = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    torch.testing.assert_close(dict(loaded), weights, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_per_example_gradients_by_vmap_equal_a_loop(name: str, norm: str) -> None:
    model = build_model(spec(name, norm)).double()
    weights, buffers = functional(model)
    x, y = images(3, (1, 16, 16)).double(), torch.tensor([0, 2, 1])

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (weights, buffers), (x[None],)), y[None])

    batched = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    for i in range(3):
        objective = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        single = torch.autograd.grad(objective, list(model.parameters()))
        for (key, _), expected in zip(model.named_parameters(), single, strict=True):
            torch.testing.assert_close(batched[key][i], expected)


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_reverse_over_forward_equals_double_backward(name: str, norm: str) -> None:
    """The attack engine's step, grad_x <grad_w L(x), v>, batched over victims against `create_graph`."""
    model = build_model(spec(name, norm)).double()
    weights, buffers = functional(model)
    x, y = images(2, (1, 16, 16)).double(), torch.tensor([0, 2])
    stream = torch.Generator().manual_seed(1)
    direction = {k: torch.randn(v.shape, generator=stream, dtype=v.dtype) for k, v in weights.items()}

    def directional(x: Tensor, y: Tensor) -> Tensor:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(model, (weights, buffers), (x[None],)), y[None])

        change: Tensor = jvp(loss, (weights,), (direction,))[1]
        return change

    fast = vmap(grad(directional))(x, y)
    for i in range(2):
        victim = x[i : i + 1].clone().requires_grad_()
        objective = F.cross_entropy(model(victim), y[i : i + 1])
        gradients = torch.autograd.grad(objective, list(model.parameters()), create_graph=True)
        product = torch.stack([(g * v).sum() for g, v in zip(gradients, direction.values(), strict=True)]).sum()
        (slow,) = torch.autograd.grad(product, victim)
        torch.testing.assert_close(fast[i], slow[0])


def test_batch_norm_without_running_statistics_is_the_same_function() -> None:
    stream = torch.Generator().manual_seed(2)
    ours, x = BatchNorm2d(3), torch.randn(4, 3, 5, 5, generator=stream)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=stream)
    fused = ours(x)
    assert ours.running_mean is not None
    torch.testing.assert_close(ours.running_mean, 0.1 * x.mean((0, 2, 3)))
    replace_all_batch_norm_modules_(ours)
    torch.testing.assert_close(ours(x), fused)


@pytest.mark.parametrize("name", ["convnet", "resnet18", "resnet20"])
def test_frozen_batch_norm_statistics_work_under_reverse_over_forward(name: str) -> None:
    model = build_model(spec(name, "batch")).double().eval()
    weights = {k: v.detach() for k, v in model.named_parameters()}
    x = images(1, (1, 16, 16)).double()

    def directional(x: Tensor) -> Tensor:
        change: Tensor = jvp(lambda w: functional_call(model, w, (x,)).square().sum(), (weights,), (weights,))[1]
        return change

    victim = x.clone().requires_grad_()
    gradients = torch.autograd.grad(model(victim).square().sum(), list(model.parameters()), create_graph=True)
    product = torch.stack([(g * w).sum() for g, w in zip(gradients, weights.values(), strict=True)]).sum()
    torch.testing.assert_close(grad(directional)(x), torch.autograd.grad(product, victim)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ModelSpec("vgg", (1, 28, 28), 2),
            "unknown model 'vgg'; allowed: convnet, lenet, mlp, resnet18, resnet20",
        ),
        (ModelSpec("lenet", (1, 28, 28), 2, norm="group"), "norm 'group' is not allowed; allowed: none"),
        (
            ModelSpec("resnet18", (1, 28, 28), 2, norm="none"),
            "norm 'none' is not allowed; allowed: group, batch",
        ),
        (ModelSpec("convnet", (1, 28, 28), 2, norm="layer"), "allowed: group, none, batch"),
        (ModelSpec("convnet", (1, 28, 28), 1), "1 classes are not allowed; at least 2"),
        (ModelSpec("convnet", (1, 28, 28), 2, width=0), "width 0 is not allowed; it must be at least 1"),
        (ModelSpec("convnet", (0, 28, 28), 2), "at least 1 channel"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_is_allowed(wrong: ModelSpec, message: str) -> None:
    with pytest.raises(FedveilError, match=message):
        build_model(wrong)


class Flat(nn.Sequential):
    """A user's model: it knows neither norms nor widths."""

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(math.prod(image_shape), classes))


class Wide(nn.Module):
    """A user's model that takes a norm and a width of its own choice."""

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, norm: str = "own", width: int = 5) -> None:
        super().__init__()
        self.norm, self.width = norm, width


class Positional(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", {**MODELS._entries, "flat": Flat, "wide": Wide, "positional": Positional})


@pytest.mark.usefixtures("plugged")
def test_any_module_class_can_be_a_model() -> None:
    model = build_model(ModelSpec("flat", (1, 3, 5), classes=4), seed=1)
    assert model(torch.zeros(2, 1, 3, 5)).shape == (2, 4)
    assert torch.equal(model[1].weight, init_model(ModelSpec("flat", (1, 3, 5), classes=4), 1)["1.weight"])
    own, told = (build_model(ModelSpec("wide", (1, 8, 8), 2, norm, width)) for norm, width in ((None, None), ("x", 3)))
    assert (own.norm, own.width, told.norm, told.width) == ("own", 5, "x", 3)


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("flat", (1, 8, 8), 2, norm="batch"), r"'flat': Flat does not take image_shape, classes, norm"),
        (ModelSpec("flat", (1, 8, 8), 2, width=3), r"unexpected keyword argument 'width'"),
        (ModelSpec("wide", (1, 8, 8), 2, width=0), r"'wide': width 0 is not allowed"),
        (ModelSpec("positional", (1, 8, 8), 2), r"'positional': Positional does not take image_shape, classes \("),
    ],
)
def test_a_module_that_does_not_take_a_setting_is_an_error_that_says_so(spec: ModelSpec, message: str) -> None:
    with pytest.raises(FedveilError, match=message):
        build_model(spec)


@pytest.mark.parametrize(("name", "norm"), [variant for variant in VARIANTS if variant[0] != "mlp"])
def test_a_model_that_takes_any_layout_computes_the_same_with_channels_last(name: str, norm: str) -> None:
    there = spec(name, norm, (3, 16, 16), 4)
    plain, laid_out = build_model(there, 3).double(), model_on(torch.device("cpu"), there, 3).double()
    # A kernel of one channel or one pixel lies both ways at once.
    kernels = [kernel for kernel in laid_out.parameters() if kernel.ndim == 4 and not kernel.is_contiguous()]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    x, y = images(5, (3, 16, 16)).double(), torch.arange(5) % 4
    first, second = (
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())) for model in (plain, laid_out)
    )
    torch.testing.assert_close(second, first, rtol=1e-9, atol=1e-12)


def test_a_model_that_does_not_say_so_keeps_its_layout() -> None:
    @MODELS.register("old-fashioned")
    class OldFashioned(nn.Module):
        def __init__(self, *, image_shape: tuple[int, int, int], classes: int) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(image_shape[0], 4, 3, padding=1)
            self.head = nn.Linear(4 * 8 * 8, classes)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.convolution(x).view(len(x), -1))
            return logits

    model = model_on(torch.device("cpu"), ModelSpec("old-fashioned", (3, 8, 8), 2))
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 2)
