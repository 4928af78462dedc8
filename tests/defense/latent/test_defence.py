from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedveil as fv
from fedveil.defense import DefenseContext, GroupMean, LatentPerturbation, Stack, TopK, TrainedOn
from fedveil.defense.latent.shared import PreparedShared, Shared
from fedveil.defense.public_models import public_autoencoder
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.models import ModelSpec

QUICK = LatentPerturbation(k=5, steps=6, random_networks=2, trained_networks=1)


def prepare(
    settings: LatentPerturbation | GroupMean, images: Images, context: DefenseContext, client: int = 0
) -> PreparedShared:
    found = settings.prepare(images, context, settings.pretrain(context), client=client)
    assert isinstance(found, PreparedShared)
    return found


@pytest.fixture(scope="module")
def uneven(private: Images) -> Images:
    """27 images of class 0 and four of class 1."""
    return private.take(torch.cat([torch.arange(0, 54, 2), torch.arange(1, 9, 2)]))


def trained(prepared: PreparedShared, images: Images) -> Tensor:
    return prepared.images(images).pixels


def test_a_client_trains_on_one_image_for_at_least_k_of_a_class(context: DefenseContext, uneven: Images) -> None:
    prepared = prepare(QUICK, uneven, context)
    found = prepared.images(uneven)
    # The class of four is left out.
    assert found.labels.tolist() == [0] * 27
    numbers = found.pixels.flatten(1).unique(dim=0, return_counts=True)[1]
    assert all(5 <= number <= 9 for number in numbers.tolist())
    assert prepared.diagnostics() == {"k": float(numbers.min()), "left_out": pytest.approx(4 / 31)}
    for group in range(len(prepared.shared.grouping)):
        members = (prepared.shared.grouping.of == group).nonzero()[:, 0]
        own = prepared.images(prepared.private.take(members)).pixels
        assert torch.equal(own, prepared.shared.images[group].expand_as(own))


def test_it_is_the_same_whenever_it_is_prepared_with_a_cache_and_without(
    context: DefenseContext, uneven: Images, tmp_path: Path
) -> None:
    kept = replace(context, cache=tmp_path)
    first = trained(prepare(QUICK, uneven, kept), uneven)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert torch.equal(trained(prepare(QUICK, uneven, kept), uneven), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    assert torch.equal(trained(prepare(QUICK, uneven, replace(context, cache=None)), uneven), first)
    # What decides otherwise is in the key.
    for other in (
        replace(QUICK, steps=7),
        replace(QUICK, k=6),
        replace(QUICK, strength=0.01),
        replace(QUICK, start="mean"),
        replace(QUICK, space="latent", public_steps=3),
        replace(QUICK, space="latent", public_steps=4),
        replace(QUICK, scope="client"),
    ):
        assert not torch.equal(trained(prepare(other, uneven, kept), uneven), first)
    assert not torch.equal(trained(prepare(QUICK, uneven, replace(kept, seed=1)), uneven), first)


def test_who_else_holds_images_changes_nothing(context: DefenseContext, uneven: Images, private: Images) -> None:
    """Of one class alone, the groups are those that they are beside other classes."""
    own = uneven.take(torch.arange(27))
    assert torch.equal(trained(prepare(QUICK, own, context), own), trained(prepare(QUICK, uneven, context), uneven))


@pytest.mark.parametrize("nothing", [{"steps": 0}, {"strength": 0}], ids=str)
def test_nothing_learnt_is_a_public_image_or_what_group_mean_does(
    nothing: dict[str, int], context: DefenseContext, private: Images, public: Images
) -> None:
    means = prepare(GroupMean(k=5), private, context)
    expected = trained(means, private)
    from_mean = replace(QUICK, start="mean")
    for networks in (1, 2):
        still = replace(from_mean, trained_networks=networks, **nothing)  # type: ignore[arg-type]
        assert torch.equal(trained(prepare(still, private, context), private), expected)
    assert not torch.equal(trained(prepare(from_mean, private, context), private), expected)
    known = {image.numpy().tobytes() for image in public.pixels}
    begun = prepare(replace(QUICK, **nothing), private, context)  # type: ignore[arg-type]
    assert {image.numpy().tobytes() for image in begun.shared.images} <= known
    x, of = means.private.floats().double(), means.shared.grouping.of
    for group, found in enumerate(means.shared.images):
        mean = (x[of == group].mean(0) * 255).round()
        assert float((found.double() - mean).abs().max()) <= 1, "halves are rounded either way"


@pytest.mark.parametrize("settings", [QUICK, GroupMean(k=5)], ids=lambda settings: settings.name)
def test_networks_are_public_and_an_attacker_rehearses_with_them(
    settings: LatentPerturbation | GroupMean, context: DefenseContext, private: Images, public: Images
) -> None:
    assert settings.trained_on is TrainedOn.PUBLIC
    surrogate = prepare(settings, private, context).surrogate()
    assert surrogate.rehearse is not None
    found = surrogate.rehearse(public, context.stream("condense", 7))
    client = prepare(settings, public, context, client=7)
    assert torch.equal(found.trained.pixels, trained(client, public.take(found.kept)))


def test_in_the_latent_nothing_learnt_is_what_the_autoencoder_makes_of_the_start(
    context: DefenseContext, private: Images, public: Images
) -> None:
    still = replace(QUICK, space="latent", public_steps=60, steps=0)
    autoencoder = public_autoencoder(context, steps=60)
    (begun, mean) = (prepare(replace(still, start=start), private, context) for start in ("public", "mean"))
    known = autoencoder(public.floats()).clamp(0, 1)
    for image in begun.shared.images.float() / 255:
        assert float((known - image).abs().amax((1, 2, 3)).min()) < 1 / 255
    of = mean.shared.grouping.of
    latents = autoencoder.encode(mean.private.floats())
    for group, image in enumerate(mean.shared.images.float() / 255):
        expected = autoencoder.decode(latents[of == group].mean(0, keepdim=True)).clamp(0, 1)[0]
        torch.testing.assert_close(image, expected, rtol=0, atol=1 / 255)


def test_with_a_secret_of_its_own_a_client_has_networks_that_an_attacker_has_to_steal(
    context: DefenseContext, private: Images, public: Images
) -> None:
    own = replace(QUICK, scope="client", space="latent", public_steps=3)
    assert own.trained_on is TrainedOn.CLIENT
    assert own.pretrain(context) is None
    first, second = prepare(own, private, context), prepare(own, private, context, client=1)
    shared = prepare(replace(own, scope="shared"), private, context)
    pictures = [one.shared.images for one in (first, second, shared)]
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert torch.equal(prepare(own, private, context).shared.images, pictures[0])
    # At the algorithm tier the attacker draws networks itself; stolen ones do what the client's do.
    drawn = own.shadow(public, replace(context, seed=99), own.pretrain(context)).surrogate()
    stolen = first.surrogate()
    for surrogate, equal in ((stolen, True), (drawn, False)):
        assert surrogate.rehearse is not None
        assert surrogate.similar is not None
        assert torch.equal(surrogate.similar(private), first.similar(private)) is equal
        found = surrogate.rehearse(private, context.stream("condense", 0))
        assert torch.equal(found.trained.pixels, trained(first, private.take(found.kept))) is equal
    assert not torch.equal(second.similar(private), first.similar(private))


@pytest.mark.parametrize("scope", ["shared", "client"])
def test_an_attackers_copy_learns_no_groups_before_it_rehearses(
    scope: str, context: DefenseContext, private: Images, public: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Stack(parts=(replace(QUICK, scope=scope), TopK()))  # type: ignore[arg-type]
    learnt = settings.pretrain(context)
    asked: list[int] = []
    real = LatentPerturbation.share

    def counted(self: LatentPerturbation, images: Images, *rest: Any, **named: Any) -> Shared:
        asked.append(len(images))
        return real(self, images, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(LatentPerturbation, "share", counted)
        surrogate = settings.shadow(public, context, learnt).surrogate()
        assert asked == []
        assert surrogate.rehearse is not None
        found = surrogate.rehearse(private, context.stream("condense", -1))
        assert asked == [len(private)]
    # What is rehearsed is what a client does with these images.
    client = settings.prepare(private, context, learnt, client=-1)
    assert torch.equal(found.trained.pixels, client.images(private.take(found.kept)).pixels)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("space", "voxels", "pixels, latent"), ("scope", "public", "shared, client"), ("start", "zero", "public, mean")],
)
def test_a_choice_that_there_is_not_is_refused(key: str, value: str, allowed: str) -> None:
    with pytest.raises(FedveilError, match=f"^latent: {key} is '{value}'; allowed: {allowed}$"):
        LatentPerturbation(**{key: value})  # type: ignore[arg-type]


def enlarged(images: Images) -> Images:
    """At 16 px a side, which a ResNet needs at least."""
    at = torch.arange(16) * 12 // 16
    return Images(images.pixels[:, :, at][:, :, :, at], images.labels)


@pytest.mark.parametrize("name", ["convnet", "lenet", "mlp", "resnet20", "resnet18", "own"])
def test_it_works_with_any_classifier(name: str, context: DefenseContext, private: Images, public: Images) -> None:
    @fv.register_model("own")
    class Own(nn.Module):
        def __init__(self, *, image_shape: tuple[int, int, int], classes: int) -> None:
            super().__init__()
            self.enter = nn.Conv2d(image_shape[0], 4, 5, stride=2)
            self.leave = nn.LazyLinear(classes)
            self(torch.zeros(1, *image_shape))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.leave(self.enter(x).relu().flatten(1))
            return logits

    width = None if name == "own" else 4
    some, held = (enlarged(images.take(torch.arange(20))) for images in (public, private))
    own = DefenseContext(some, ModelSpec(name, some.shape, 2, width=width), context.device, 0)
    found = prepare(replace(QUICK, steps=1, random_networks=1), held, own)
    assert found.shared.images.shape[1:] == held.shape
    assert found.diagnostics() == {"k": 5.0, "left_out": 0.0}


def test_it_stacks_with_a_defence_of_the_update(context: DefenseContext, private: Images) -> None:
    stack = Stack(parts=(QUICK, TopK(keep=0.5)))
    prepared = stack.prepare(private, context, stack.pretrain(context), client=0)
    assert torch.equal(prepared.images(private).pixels, trained(prepare(QUICK, private, context), private))
    sent = prepared.update(ClientUpdate.gradient({"w": torch.tensor([3.0, -4.0])}), torch.Generator())
    assert sent.tensors["w"].tolist() == [0, -4]
    surrogate = prepared.surrogate()
    assert (surrogate.data, surrogate.complete) == (None, True)
    assert surrogate.rehearse is not None
    assert surrogate.update is not None
    assert stack.trained_on is TrainedOn.PUBLIC


def test_a_client_without_enough_images_is_refused(context: DefenseContext, private: Images) -> None:
    with pytest.raises(FedveilError, match=r"^latent: client 2 has no class with k = 5 different images"):
        prepare(QUICK, private.take(torch.arange(8)), context, client=2)
