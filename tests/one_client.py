"""One client's training, and the model on which the same is worked by hand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedveil.fl.data.images import Images
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ClientUpdate, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.training import LocalResult, LocalTraining, local_update

SHAPE = (1, 12, 12)
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
