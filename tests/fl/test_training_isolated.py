"""A client's training depends on its arguments alone, and nothing leaves it but the model's own tensors."""

from dataclasses import fields, replace

import pytest
import torch
from one_client import KINDS, same_bits, shard, spec, stream, train
from torch import Tensor, nn

from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import build_model, init_model
from fedveil.fl.training import LocalTraining, exchanged, load_exchanged, local_update, predict

torch.set_num_threads(1)


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
