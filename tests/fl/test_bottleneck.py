from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.models.bottleneck import VariationalBottleneck, bottleneck_of, insert_bottleneck


def test_a_code_by_hand() -> None:
    """One feature of 3, a mean of 2 * 3, a deviation of log(1 + e^0) and no noise or a noise of 2."""
    layer = VariationalBottleneck(1, 1)
    with torch.no_grad():
        layer.encoder.weight.copy_(torch.tensor([[2.0], [0.0]]))
        layer.encoder.bias.zero_()
        layer.decoder.weight.fill_(10)
        layer.decoder.bias.fill_(1)
    layer.eval()
    assert layer(torch.tensor([[3.0]])).item() == pytest.approx(61)
    layer.noise = torch.tensor([[2.0]])
    assert layer(torch.tensor([[3.0]])).item() == pytest.approx(61 + 20 * math.log(2))


def test_codes_have_the_law_that_the_encoder_says() -> None:
    torch.manual_seed(0)
    layer = VariationalBottleneck(3, 2).train()
    layer.decoder = nn.Linear(2, 2)
    with torch.no_grad():
        layer.decoder.weight.copy_(torch.eye(2))
        layer.decoder.bias.zero_()
    features = torch.tensor([[0.5, -1.0, 2.0]])
    mean, spread = layer.encoder(features)[0].split(2)
    codes = layer(features.expand(20_000, 3))
    torch.testing.assert_close(codes.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(codes.std(0), F.softplus(spread), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ["lenet", "convnet", "mlp", "resnet20"])
def test_it_is_put_before_the_last_layer_and_is_sent_with_the_rest(name: str) -> None:
    plain, changed = (build_model(ModelSpec(name, (1, 16, 16), 3, bottleneck=size)) for size in (None, 5))
    assert bottleneck_of(plain) is None
    assert bottleneck_of(changed) == "head.bottleneck"
    # All that stands before it is drawn as without one.
    for parameter, weight in plain.named_parameters():
        if not parameter.startswith("head"):
            assert torch.equal(weight, changed.get_parameter(parameter))
    sent = init_model(ModelSpec(name, (1, 16, 16), 3, bottleneck=5), 0)
    assert sent["head.bottleneck.encoder.weight"].shape[0] == 10
    assert "head.bottleneck.noise" not in sent
    x = torch.rand(2, 1, 16, 16)
    assert not torch.equal(changed.train()(x), changed(x))
    assert torch.equal(changed.eval()(x), changed(x))
    assert changed(x).shape == (2, 3)


def test_a_model_without_a_linear_layer_has_no_place_for_it() -> None:
    with pytest.raises(FedveilError, match="Sequential has no linear layer"):
        insert_bottleneck(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), 4)
