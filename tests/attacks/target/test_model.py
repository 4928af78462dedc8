from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.attacks.engine.attackable import check_attackable, count_classes
from fedveil.attacks.engine.objective import Problem, objective, oracle
from fedveil.attacks.priors import TotalVariation
from fedveil.attacks.target.elementary import Elementary
from fedveil.attacks.target.model import Mode, TargetModel, target_model
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model
from fedveil.fl.seeding import torch_stream

SHAPE = (3, 8, 8)
ATTENTION = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch-plain": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "batch-sync": lambda: nn.SyncBatchNorm(4),
    "batch-1d": lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4)),
    "batch-3d": lambda: nn.Sequential(nn.Unflatten(2, (6, 1)), nn.BatchNorm3d(4)),
    "layer": lambda: nn.LayerNorm([4, 6, 6]),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance-tracked": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "rms": lambda: nn.RMSNorm([4, 6, 6]),
    "dropout": lambda: nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()),
    "in-place": lambda: nn.Sequential(nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.ReLU6(inplace=True)),
    "hardsigmoid": lambda: nn.Hardsigmoid(inplace=True),
    "rrelu": lambda: nn.RReLU(),
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    "attention": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 8), copy.deepcopy(ATTENTION)),
}


class Net(nn.Module):
    """Curved before and after the layer, so that all derivatives have something to say."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 3), layer
        self.head = nn.LazyLinear(3)
        self.eval()(torch.rand(2, *SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.stem(x).sin()).flatten(1).tanh())
        return logits


def network(layer: nn.Module) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(layer)
        for parameter in net.layer.parameters():
            nn.init.normal_(parameter, 0.5, 0.3)
    return net


def target_of(module: nn.Module, mode: Mode = "train") -> TargetModel:
    return target_model(module, image_shape=SHAPE, classes=3, mode=mode)


def images(count: int) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch_stream(0, "images"), dtype=torch.float64)


# The gradient is the client's, and its derivative the right one


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_a_step_through_any_layer_equals_the_twice_differentiated_oracle(
    layer: Callable[[], nn.Module], mode: Mode, batch: int
) -> None:
    target = target_of(network(layer()), mode)
    target.module.double()
    weights = {name: p.detach() for name, p in target.module.named_parameters()}
    stream = torch_stream(0, "target")
    observed = {n: torch.randn((2, *w.shape), generator=stream, dtype=torch.float64) for n, w in weights.items()}
    problem = Problem(target, weights, observed, torch.randint(3, (2, batch), generator=stream))
    x = torch.stack([images(batch), images(batch).flip(-1)])
    value, slope = objective(problem, priors=[TotalVariation(0.01)])(x)
    expected, expected_slope = oracle(problem, priors=[TotalVariation(0.01)])(x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("dropout", "rrelu", "attention")])
def test_the_loss_is_that_of_a_client_in_that_mode(name: str, mode: Mode) -> None:
    """Random masks aside: no attacker knows them."""
    model = network(LAYERS[name]()).double()
    target = target_of(model, mode)
    y = torch.tensor([0, 1, 2])
    mine = F.cross_entropy(target.logits(dict(model.named_parameters()), images(3)), y)
    theirs = F.cross_entropy(model.train(mode == "train")(images(3)), y)
    torch.testing.assert_close(mine, theirs)
    parameters = list(model.parameters())
    pairs = zip(torch.autograd.grad(mine, parameters), torch.autograd.grad(theirs, parameters), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9)


def test_a_random_mask_is_its_mean() -> None:
    x = images(2)
    with Elementary():
        assert torch.equal(F.dropout(x, 0.5), x)
        assert torch.equal(torch.bernoulli(x), x)
        assert torch.empty(3).bernoulli_(0.25).tolist() == [0.25] * 3
    assert not torch.equal(F.dropout(x, 0.5), x)


def test_one_value_per_channel_is_no_error_in_training_mode() -> None:
    with Elementary():
        assert nn.BatchNorm1d(4)(torch.rand(1, 4)).tolist() == [[0.0] * 4]


def test_the_users_model_stays_as_it_is() -> None:
    model = network(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    target = target_of(model, "train")
    target.logits({}, images(2).float())
    check_attackable(target)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.layer[1].inplace
    assert model.layer[0].track_running_stats


def test_images_are_normalised_as_the_client_does_it() -> None:
    model = network(nn.ReLU())
    normalize = ([0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    target = target_model(model, image_shape=SHAPE, classes=3, normalize=normalize)
    x = images(2).float()
    by_hand = torch.stack([(x[:, 0] - 0.1) / 0.5, x[:, 1] - 0.2, (x[:, 2] - 0.3) / 2.0], dim=1)
    torch.testing.assert_close(target.logits({}, x), model(by_hand))
    for bad in (([0.5], [0.5]), ([0.5] * 3, [0.5, 0.0, 0.5])):
        with pytest.raises(FedveilError, match="normalize: "):
            target_model(model, image_shape=SHAPE, classes=3, normalize=bad)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.one, self.two, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.two(self.one(self.flat(x)).tanh()).tanh())
        return logits


def test_a_shared_parameter_has_one_gradient_and_one_name() -> None:
    model = Tied()
    target = target_of(model)
    check_attackable(target)
    assert "two.weight" in model.state_dict()
    assert [*target.known(model.state_dict())] == ["one.weight", "one.bias", "two.bias", "head.weight", "head.bias"]
    moved = {"one.weight": model.one.weight.detach() + 0.01}
    both = copy.deepcopy(model)
    both.one.weight.data += 0.01
    torch.testing.assert_close(target.logits(moved, images(1).float()), both(images(1).float()))


def test_this_packages_own_models_are_attackable() -> None:
    for spec in (ModelSpec("lenet", SHAPE, 3), ModelSpec("convnet", SHAPE, 3, norm="batch", width=4)):
        target = target_of(build_model(spec))
        assert count_classes(target) == 3
        check_attackable(target)


# What can't be attacked


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:
        return 2 * slope


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = Doubled.apply(x)
        return doubled


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # Gaussian noise would be taken at its mean, as dropout is.
        return x + torch.rand_like(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.rows(x[:, 0])[0]
        return found


class WronglyDifferentiated(nn.Module):
    """PyTorch's own kernel, in a place that is not replaced: the derivative forgets that the mean depends on x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.native_layer_norm(x, [4, 6, 6], None, None, 1e-5)[0]


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Custom(), r"layer layer \(Custom\) can't be attacked: In order to use an autograd.Function"),
        (Branching(), r"layer layer \(Branching\) can't be attacked: vmap: .* data-dependent control flow"),
        (
            nn.Sequential(nn.ReLU(), Noisy()),
            r"layer layer.1 \(Noisy\) can't be attacked: vmap: called random operation",
        ),
        (Recurrent(), r"layer layer.rows \(LSTM\) can't be attacked: "),
        (
            WronglyDifferentiated(),
            r"layer layer \(WronglyDifferentiated\) can't be attacked: PyTorch differentiates it",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_attacked_is_refused_by_the_layers_name(layer: nn.Module, named: str) -> None:
    with pytest.raises(FedveilError, match=f"model: {named}") as refusal:
        check_attackable(target_of(network(layer)))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 260


class Uncopied(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("it holds an open file")


def test_what_is_no_classifier_of_such_images_is_refused() -> None:
    with pytest.raises(FedveilError, match=r"Sequential does not take images of shape \(3, 8, 8\): .*mat1"):
        count_classes(target_of(nn.Sequential(nn.Flatten(), nn.Linear(5, 3))))
    with pytest.raises(FedveilError, match=r"expected \(n, classes\) logits .* from Conv2d, got \(1, 3, 6, 6\)"):
        count_classes(target_of(nn.Conv2d(3, 3, 3)))
    with pytest.raises(FedveilError, match=r"of at least two classes from Sequential, got \(1, 1\)"):
        count_classes(target_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 1))))
    with pytest.raises(FedveilError, match="model: Uncopied can't be copied: it holds an open file"):
        target_of(Uncopied())
    with pytest.raises(FedveilError, match="mode: 'training' is not allowed; allowed: train, eval"):
        target_of(nn.Flatten(), "training")  # type: ignore[arg-type]
