from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.training import LocalResult, LocalTraining, exchanged, load_exchanged, local_update, predict

torch.set_num_threads(1)

SHAPE = (1, 12, 12)
NORMS = ["none", "group", "batch"]
GRADIENT = LocalTraining(UpdateKind.GRADIENT, epochs=1, batch_size=4, learning_rate=0.1)
DELTA = LocalTraining(UpdateKind.DELTA, epochs=2, batch_size=4, learning_rate=0.1)
KINDS = [GRADIENT, DELTA]


def spec(norm: str = "group") -> ModelSpec:
    return ModelSpec("convnet", SHAPE, classes=3, norm=norm, width=4)


def shard(count: int = 10) -> Images:
    stream = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, *SHAPE), generator=stream, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def stream(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(
    how: LocalTraining,
    norm: str = "group",
    hooks: NoHooks | None = None,
    *,
    model: nn.Module | None = None,
    images: Images | None = None,
    seed: int = 7,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> LocalResult:
    weights = init_model(spec(norm), seed=3)
    return local_update(
        model or build_model(spec(norm)),
        weights,
        images or shard(),
        hooks or NoHooks(),
        how,
        stream(seed),
        on_batch=on_batch,
    )


def by_hand(norm: str) -> tuple[nn.Module, dict[str, Tensor]]:
    weights = init_model(spec(norm), seed=3)
    model = build_model(spec(norm))
    model.load_state_dict(weights, strict=False)
    return model.train(), weights


def same_bits(left: ClientUpdate, right: ClientUpdate) -> bool:
    pairs = [(left.tensors, right.tensors), (left.buffers, right.buffers)]
    return all(a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in pairs)


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_is_that_of_autograd_on_one_batch(norm: str) -> None:
    result = train(GRADIENT, norm)
    model, _ = by_hand(norm)
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    loss = F.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(result.update.tensors[name], parameter.grad)
        assert parameter.grad.abs().sum() > 0
    assert result.loss == pytest.approx(loss.item())
    assert (result.update.kind, result.update.local_steps, result.update.examples) == (UpdateKind.GRADIENT, 1, 4)


def test_a_gradient_of_a_small_shard_counts_the_examples_that_it_has() -> None:
    assert train(replace(GRADIENT, batch_size=64)).update.examples == 10


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_weight_change_is_that_of_sgd_on_the_proximal_loss(norm: str, mu: float) -> None:
    result = train(replace(DELTA, proximal=mu), norm)
    model, weights = by_hand(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = stream()
    for _ in range(2):
        for indices in torch.randperm(10, generator=order).split(4):
            x, y = shard().batch(indices)
            distance = sum((p - weights[n]).square().sum() for n, p in model.named_parameters())
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + mu / 2 * distance).backward()
            optimizer.step()
    after = model.state_dict()
    for name, change in {**result.update.tensors, **result.update.buffers}.items():
        torch.testing.assert_close(change, after[name] - weights[name], atol=1e-6, rtol=1e-5)
    # Batches of 4, 4 and 2 images, twice.
    assert (result.update.kind, result.update.local_steps, result.update.examples) == (UpdateKind.DELTA, 6, 10)


def test_the_proximal_term_acts_from_the_second_step_on() -> None:
    def change(mu: float, steps: int) -> Tensor:
        how = replace(DELTA, epochs=steps, batch_size=10, proximal=mu)
        return torch.cat([t.flatten() for t in train(how).update.tensors.values()])

    assert torch.equal(change(0, 1), change(5, 1))
    assert change(5, 4).norm() < 0.9 * change(0, 4).norm()


def test_one_step_of_sgd_is_the_gradient_times_the_learning_rate() -> None:
    gradient = train(replace(GRADIENT, batch_size=10)).update
    change = train(replace(DELTA, batch_size=10, epochs=1, learning_rate=0.25)).update
    for name, tensor in gradient.tensors.items():
        torch.testing.assert_close(change.tensors[name], -0.25 * tensor, atol=1e-6, rtol=1e-4)


def test_the_loss_is_the_mean_over_examples_and_not_over_batches() -> None:
    # Three batches of 4, 4 and 2 images at a learning rate of zero.
    result = train(replace(DELTA, epochs=1, learning_rate=0.0))
    model, _ = by_hand("group")
    assert result.loss == pytest.approx(F.cross_entropy(model(shard().floats()), shard().labels).item(), rel=1e-5)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.kind))
def test_batchnorm_statistics_travel_as_buffers(how: LocalTraining) -> None:
    result = train(replace(how, batch_size=10, epochs=1), "batch")
    model, weights = by_hand("batch")
    names = {n for n, b in model.named_buffers() if b.is_floating_point()}
    assert result.update.buffers.keys() == names
    assert len(names) == 6
    assert result.update.tensors.keys() == dict(model.named_parameters()).keys()
    # The first convolution's output over the whole shard, by PyTorch's rule with momentum 0.1.
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    mean = first(shard().floats()).mean((0, 2, 3))
    old = weights["body.0.1.running_mean"]
    torch.testing.assert_close(result.update.buffers["body.0.1.running_mean"], 0.1 * (mean - old))


@pytest.mark.parametrize("norm", ["none", "group"])
def test_without_batchnorm_there_are_no_buffers(norm: str) -> None:
    assert train(DELTA, norm).update.buffers == {}


@pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.kind))
def test_what_leaves_a_client_has_the_models_shapes_and_no_images(how: LocalTraining) -> None:
    update = train(how, "batch").update
    assert {f.name for f in fields(update)} == {
        "tensors",
        "buffers",
        "examples",
        "kind",
        "local_steps",
        "learning_rate",
        "rate_known",
        "optimizer",
        "value_bits",
    }
    shapes = {name: tensor.shape for name, tensor in init_model(spec("batch"), 0).items()}
    sent = {**update.tensors, **update.buffers}
    assert {name: tensor.shape for name, tensor in sent.items()} == shapes
    assert all(t.dtype == torch.float32 and not t.requires_grad and t.device.type == "cpu" for t in sent.values())


@pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.kind))
def test_the_result_depends_on_nothing_but_the_arguments(how: LocalTraining) -> None:
    once = train(how, "batch")
    used = build_model(spec("batch"), seed=99)
    predict(used, exchanged(used), shard(), NoHooks(), stream())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = train(how, "batch", model=used)
    assert same_bits(once.update, again.update)
    assert once.loss == again.loss
    assert torch.equal(torch.get_rng_state(), state)
    assert not same_bits(once.update, train(how, "batch", seed=8).update)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.kind))
def test_the_servers_weights_and_the_shard_stay_as_they_were(how: LocalTraining) -> None:
    weights, images = init_model(spec("batch"), 3), shard()
    local_update(build_model(spec("batch")), weights, images, NoHooks(), how, stream())
    assert all(torch.equal(weights[n], t) for n, t in init_model(spec("batch"), 3).items())
    assert torch.equal(images.pixels, shard().pixels)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.kind))
def test_the_next_client_on_the_same_model_leaves_an_earlier_update_alone(how: LocalTraining) -> None:
    model = build_model(spec("batch"))
    first = train(how, "batch", model=model).update
    kept = replace(
        first,
        tensors={n: t.clone() for n, t in first.tensors.items()},
        buffers={n: t.clone() for n, t in first.buffers.items()},
    )
    train(how, "batch", model=model, seed=8)
    assert same_bits(first, kept)


class Scaled(NoHooks):
    """Darkens the images, triples the loss, adds one to the update and counts what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.labels: list[Tensor | None] = []

    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        self.calls.append("data")
        self.labels.append(y)
        return x / 2

    def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        self.calls.append("loss")
        assert torch.equal(loss, F.cross_entropy(logits, y))
        assert x.max() <= 0.5
        return 3 * loss

    def update(self, update: ClientUpdate, stream: torch.Generator) -> ClientUpdate:
        self.calls.append("update")
        return replace(update, tensors={n: t + 1 for n, t in update.tensors.items()})

    def output(self, logits: Tensor) -> Tensor:
        self.calls.append("output")
        return -logits


def test_a_defence_acts_on_data_then_loss_then_update() -> None:
    hooks = Scaled()
    result = train(GRADIENT, hooks=hooks)
    assert hooks.calls == ["data", "loss", "update"]
    model, _ = by_hand("group")
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    loss = 3 * F.cross_entropy(model(x / 2), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(result.update.tensors[name], gradient + 1)
    assert result.loss == pytest.approx(loss.item())


class Mixed(NoHooks):
    """Labels are shares of two classes, and one image comes beside the batch."""

    def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        shares = 0.75 * F.one_hot(y, 3).float() + 0.25 * F.one_hot(torch.zeros_like(y), 3).float()
        return torch.cat([x / 2, torch.ones_like(x[:1])]), torch.cat([shares, torch.full((1, 3), 1 / 3)])


def test_a_defence_may_make_labels_shares_and_add_images() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    result = train(GRADIENT, hooks=Mixed(), on_batch=lambda x, at: seen.append((x, at)))
    model, _ = by_hand("group")
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    log = model(torch.cat([x / 2, torch.ones_like(x[:1])])).log_softmax(1)
    # -(3/4 log p_y + 1/4 log p_0) of each image, -(mean log p) of the one beside them, over all five.
    own = 0.75 * log[:4].gather(1, y[:, None])[:, 0] + 0.25 * log[:4, 0]
    loss = -(own.sum() + log[4].mean()) / 5
    for (name, _), gradient in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(result.update.tensors[name], gradient)
    assert result.loss == pytest.approx(loss.item())
    assert result.update.examples == 4
    # What is shown to an audit stands for the client's images alone.
    assert torch.equal(seen[0][0], x / 2)


def test_public_images_beside_shares_have_whole_ones() -> None:
    kept: list[Tensor] = []

    class Watched(Mixed):
        def loss(self, loss: Tensor, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
            kept.append(y)
            return loss

    local_update(
        build_model(spec()),
        init_model(spec(), 3),
        shard(),
        Watched(),
        replace(GRADIENT, replay=0.5),
        stream(),
        public=Images(shard(3).pixels, torch.tensor([2, 2, 2])),
    )
    assert torch.equal(kept[0][5:], torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))
    assert kept[0].sum(1).tolist() == pytest.approx([1.0] * 9)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda x, y: x, "got Tensor"),
        (lambda x, y: (x[:2], y[:2]), "got images of shape"),
        (lambda x, y: (x[..., :6], y), "got images of shape"),
        (lambda x, y: (x, y[:2]), "got labels of shape \\(2,\\) for 4 images"),
        (lambda x, y: (x, y.float()), "got labels of shape"),
        (lambda x, y: (x, F.one_hot(y)), "got labels of shape"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(made: Callable[[Tensor, Tensor], object], message: str) -> None:
    class Odd(NoHooks):
        def batch(self, model: nn.Module, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
            return made(x, y)  # type: ignore[return-value]

    with pytest.raises(FedveilError, match=message):
        train(GRADIENT, hooks=Odd())


def test_an_audit_sees_each_batch_as_it_was_trained_on() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    train(replace(DELTA, epochs=1), hooks=Scaled(), on_batch=lambda x, at: seen.append((x, at)))
    assert [len(x) for x, _ in seen] == [4, 4, 2]
    assert torch.equal(torch.cat([at for _, at in seen]).sort().values, torch.arange(10))
    for x, at in seen:
        assert torch.equal(x, shard().floats()[at] / 2)
        assert not x.requires_grad


def test_each_epoch_sees_each_image_once_and_in_a_new_order() -> None:
    seen: list[Tensor] = []
    train(DELTA, on_batch=lambda x, at: seen.append(at))
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_weights_that_do_not_fit_are_refused() -> None:
    model = build_model(spec())
    weights = init_model(spec(), 0)
    with pytest.raises(FedveilError, match=r"\['odd'\] are on one side only"):
        load_exchanged(model, {**weights, "odd": torch.zeros(1)})
    with pytest.raises(FedveilError, match=r"head\.bias"):
        load_exchanged(model, {n: t for n, t in weights.items() if n != "head.bias"})
    with pytest.raises(FedveilError, match=r"head.bias is \(1,\), not \(3,\)"):
        load_exchanged(model, {**weights, "head.bias": torch.zeros(1)})


def test_exchanged_weights_come_back_as_they_were_loaded() -> None:
    weights = init_model(spec("batch"), 11)
    model = build_model(spec("batch"))
    load_exchanged(model, weights)
    found = exchanged(model)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[n], weights[n]) and not found[n].requires_grad for n in weights)
    assert not any("num_batches" in name for name in found)


def test_predictions_are_those_of_the_model_in_evaluation_mode() -> None:
    weights = init_model(spec("batch"), 3)
    found = predict(build_model(spec("batch")), weights, shard(), NoHooks(), stream())
    model, _ = by_hand("batch")
    expected = model.eval()(shard().floats()).softmax(dim=1)
    torch.testing.assert_close(found, expected)
    pieces = predict(build_model(spec("batch")), weights, shard(), NoHooks(), stream(), batch_size=3)
    torch.testing.assert_close(pieces, found)
    assert not found.requires_grad


def test_predictions_pass_the_clients_own_defence() -> None:
    hooks = Scaled()
    weights = init_model(spec(), 3)
    found = predict(build_model(spec()), weights, shard(), hooks, stream())
    model, _ = by_hand("group")
    torch.testing.assert_close(found, (-model(shard().floats() / 2)).softmax(dim=1))
    assert hooks.calls == ["data", "output"]
    assert hooks.labels == [None], "labels are not known at test time"


class Dropping(nn.Module):
    """Dropout, a frozen layer, and one that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(144, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout()
        self.head = nn.Linear(6, 3)
        self.idle = nn.Linear(2, 2)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.norm(self.body(x.flatten(1)))))
        return logits


def dropped(how: LocalTraining, seed: int = 7) -> ClientUpdate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dropping()
    weights = {name: value.clone() for name, value in exchanged(model).items()}
    return local_update(model, weights, shard(), NoHooks(), how, stream(seed)).update


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.kind)
def test_dropout_is_a_function_of_the_stream_and_leaves_the_global_generator_alone(how: LocalTraining) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = dropped(how)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_bits(dropped(how), first)
    assert not same_bits(dropped(how, seed=8), first)
    assert not same_bits(dropped(replace(how, mode="eval")), first)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.kind)
def test_frozen_layers_send_nothing_and_idle_ones_send_zeros(how: LocalTraining) -> None:
    update = dropped(how)
    assert update.tensors.keys() == {f"{n}.{p}" for n in ("norm", "head", "idle") for p in ("weight", "bias")}
    assert not update.tensors["idle.weight"].any()
    assert update.tensors["head.weight"].any()
    assert update.buffers.keys() == {"norm.running_mean", "norm.running_var"}


def test_in_eval_mode_statistics_are_used_and_not_moved() -> None:
    how = replace(GRADIENT, mode="eval")
    update = train(how, "batch").update
    assert not any(delta.any() for delta in update.buffers.values())
    model, _ = by_hand("batch")
    x, y = shard().batch(torch.randperm(10, generator=stream())[:4])
    gradients = torch.autograd.grad(F.cross_entropy(model.eval()(x), y), list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(update.tensors[name], gradient)


class Cropping(NoHooks):
    def data(self, x: Tensor, y: Tensor | None, stream: torch.Generator) -> Tensor:
        return x[..., 1:]


def test_a_defence_that_changes_the_images_shape_is_refused_in_words() -> None:
    how = LocalTraining(UpdateKind.GRADIENT, 1, 4, 0.1)
    with pytest.raises(
        FedveilError, match=r"defence: data\(\) has to return images of shape \(4, \d+, \d+, \d+\), got"
    ):
        local_update(build_model(spec()), init_model(spec(), 0), shard(), Cropping(), how, stream())
