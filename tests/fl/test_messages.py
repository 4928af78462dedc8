import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedveil.fl.errors import FedveilError
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, PrivacyRecord, Reconstruction, ThreatModel, UpdateKind
from fedveil.fl.optimizers import SGD, Adam


def update(tensors: dict[str, Tensor], buffers: dict[str, Tensor] | None = None) -> ClientUpdate:
    return ClientUpdate(tensors, 1, UpdateKind.DELTA, local_steps=1, learning_rate=0.1, buffers=buffers or {})


def test_bytes_sent_worked_by_hand() -> None:
    sparse = torch.zeros(100)
    sparse[:3] = 1
    # 10 dense float32; 3 values with an index each; half full are 10 values, and 20 bits in 3 bytes for where.
    assert update({"dense": torch.ones(2, 5)}).nbytes() == 40
    assert update({"sparse": sparse}).nbytes() == 24
    assert update({"half": torch.tensor([1.0, 0.0] * 10)}).nbytes() == 43
    assert update({"dense": torch.ones(10), "sparse": sparse}, {"mean": torch.ones(4)}).nbytes() == 40 + 24 + 16
    assert update({"nothing": torch.zeros(9)}).nbytes() == 0
    # 20 signs in 3 bytes beside their size; half of them with the bitmap would be 2 + 3; statistics stay float32.
    signs = dataclasses.replace(update({"signs": torch.ones(20)}, {"mean": torch.ones(4)}), value_bits=1)
    assert signs.nbytes() == 3 + 4 + 16


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([1, 2, 4, 8, 32]))
def test_no_encoding_is_longer_than_the_dense_one_nor_shorter_than_its_values(size: int, sent: int, bits: int) -> None:
    tensor = torch.zeros(size)
    tensor[: min(sent, size)] = 1
    found = dataclasses.replace(update({"w": tensor}), value_bits=bits).nbytes() - (4 if bits < 32 and sent else 0)
    assert -(-min(sent, size) * bits // 8) <= found <= -(-size * bits // 8)


def test_a_gradient_as_users_hand_it_over() -> None:
    tensors = {"w": torch.ones(2)}
    found = ClientUpdate.gradient(tensors, examples=3)
    assert found == ClientUpdate(tensors, 3, UpdateKind.GRADIENT, local_steps=1, learning_rate=1.0)
    tensors["more"] = torch.ones(1)
    assert found.tensors.keys() == {"w"}, "the message does not change with the caller's dict"


def test_a_delta_as_users_hand_it_over() -> None:
    tensors, buffers = {"w": torch.ones(2)}, {"mean": torch.ones(1)}
    found = ClientUpdate.delta(tensors, learning_rate=0.1, local_steps=5, examples=20, buffers=buffers)
    assert found == ClientUpdate(tensors, 20, UpdateKind.DELTA, 5, 0.1, buffers)
    assert ClientUpdate.delta(tensors) == ClientUpdate(tensors, 1, UpdateKind.DELTA, 1, 1.0, rate_known=False)


def test_a_delta_of_another_optimiser_is_sized_by_no_rate() -> None:
    tensors = {"w": torch.ones(2)}
    found = ClientUpdate.delta(tensors, learning_rate=0.1, local_steps=2, optimizer="adam")
    assert (found.optimizer, found.learning_rate, found.rate_known, found.plain) == (Adam(), 0.1, False, False)
    slow = SGD(momentum=0.9)
    assert ClientUpdate.delta(tensors, learning_rate=0.1, optimizer=slow).rate_known
    assert not ClientUpdate.delta(tensors, learning_rate=0.1, local_steps=2, optimizer=slow).rate_known
    with pytest.raises(FedveilError, match=r"the learning_rate of Adam\(weight_decay=0\.0\) is not given"):
        ClientUpdate.delta(tensors, optimizer="adam")
    with pytest.raises(FedveilError, match="unknown optimizer 'lion'; allowed: adam, sgd"):
        ClientUpdate.delta(tensors, learning_rate=0.1, optimizer="lion")


def test_a_threat_model_names_the_grants_that_it_lacks() -> None:
    weak = ThreatModel(labels=False)
    needed = ThreatModel(labels=True, auxiliary_data=True, defense_modules=True)
    assert weak.lacks(needed) == ["labels", "auxiliary_data", "defense_modules"]
    assert needed.lacks(weak) == []
    assert needed.lacks(needed) == []


@pytest.mark.parametrize("kind", [ClientUpdate, ThreatModel, Reconstruction, PrivacyRecord])
def test_messages_are_frozen(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_a_reconstruction_holds_no_score_against_the_truth() -> None:
    fields = ["images", "labels", "loss", "blind", "classes", "likeness", "scale_guessed"]
    assert [f.name for f in dataclasses.fields(Reconstruction)] == fields


def test_no_hooks_is_the_identity_everywhere() -> None:
    hooks, x, y = NoHooks(), torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    sent = update({"w": torch.ones(3)})
    loss = torch.tensor(0.5)
    assert hooks.data(x, y, torch.Generator()) is x
    assert hooks.loss(loss, torch.nn.Identity(), x, y, x) is loss
    assert hooks.update(sent, torch.Generator()) is sent
    assert hooks.output(x) is x
