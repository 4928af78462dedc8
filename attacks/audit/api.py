"""`audit`: what an update of any model leaks, from Python. It makes of its arguments what `audit_updates` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedveil.attacks.adaptive.preparation import (
    PreparationKey,
    preparation_key,
    prepare_attacker,
)
from fedveil.attacks.audit.chosen import chosen_attacks
from fedveil.attacks.audit.direction import check_directions
from fedveil.attacks.audit.inputs import (
    Labels,
    Pictures,
    Updates,
    as_device,
    as_floats,
    as_images,
    as_labels,
    as_updates,
)
from fedveil.attacks.audit.observed import batch_size_of, observations_of, victims_of, with_draws
from fedveil.attacks.audit.rates import with_likely_rates
from fedveil.attacks.audit.report import AuditReport
from fedveil.attacks.audit.updates import Attacker, audit_updates
from fedveil.attacks.base import Attack, AttackerPreparation
from fedveil.attacks.engine.attackable import check_attackable, count_classes
from fedveil.attacks.labels import recover_labels
from fedveil.attacks.scoring import Gallery, Scorer, build_scorer, small_note
from fedveil.attacks.scoring.victims import VictimBatch
from fedveil.attacks.target.model import Mode, TargetModel, target_model
from fedveil.defense.base import Defense, DefenseContext, PreparedDefense, Stateless, TrainedOn
from fedveil.defense.noise import NoDefense
from fedveil.fl.data.images import Images
from fedveil.fl.errors import FedveilError
from fedveil.fl.models import ModelSpec
from fedveil.fl.seeding import derive_seed, torch_stream


def audit(
    model: nn.Module,
    update: Updates,
    *,
    images: Pictures | None = None,
    labels: Labels | None = None,
    repeats: Sequence[Updates | tuple[nn.Module, Updates]] = (),
    trained_images: Pictures | Sequence[Pictures] | None = None,
    auxiliary: Images | tuple[Pictures, Labels] | None = None,
    attacks: Sequence[str | Attack] | None = None,
    defense: Defense[Any] | PreparedDefense | None = None,
    mode: Mode = "train",
    labels_known: bool = True,
    image_shape: tuple[int, int, int] | None = None,
    batch_size: int | None = None,
    gallery: Pictures | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    cache: str | Path | None = None,
) -> AuditReport:
    """Attack what a client sent, and score the reconstructions against the client's images.

    >>> import torch, fedveil as fv
    >>> x, y = torch.rand(1, 1, 16, 16), torch.tensor([1])
    >>> model = fv.build_model("lenet", image_shape=(1, 16, 16), classes=2)
    >>> loss = torch.nn.functional.cross_entropy(model(x), y)
    >>> gradient = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))
    >>> report = fv.audit(model, gradient, images=x, labels=y, attacks=[fv.InvertingGradients(steps=5)])
    >>> report.records[0].attack, report.worst("mse") < 0.2
    ('inverting_gradients', True)

    Args:
        model: with the weights that the server sent: (n, C, H, W) images to (n, classes) logits, trained by
            cross-entropy. It stays as it is.
        update: a gradient by parameter name; a weight change by name that holds the model's buffers too (a
            ``state_dict`` after training minus the one before), as of one step; a list of arrays in the order of the
            ``state_dict``, of the parameters or of the trained parameters, as Flower's clients return, as of one step too:
            weights after training or their change, told apart by their size; or ``fv.Update.gradient(...)`` and
            ``fv.Update.delta(..., learning_rate=, local_steps=)``, which say it. Parameters that the client froze may be
            left out. A list of any of these is one victim batch each.
        images: the client's originals, all batches in order: (n, C, H, W), or (n, H, W) for grey ones, as bytes or as
            floats in [0, 1] (rounded to bytes). None reconstructs and scores nothing.
        labels: (n,) classes; None if they are not known: they are recovered from the updates.
        repeats: what the same clients sent of the same batches at other times, if a defence draws fresh noise each time: an
            attacker keeps every round. Each holds as many updates as ``update``, sent from the same weights or, as a pair
            with the model, from those that the model had then.
        trained_images: what the client trained on instead of ``images``, if a defence changed them; with ``repeats`` a list
            of that, one for each time.
        auxiliary: the attacker's images and their labels, of no client; the adaptive attacks, the judge of classes and
            the baseline take them.
        attacks: names or attacks; None runs strongest, and the adaptive attack that fits what is given.
        defense: the client's. Settings are known to adaptive attacks, which prepare a copy on the auxiliary images; a
            prepared defence, or one without modules, is held by them as it is.
        mode: how the client's BatchNorm and dropout ran.
        labels_known: False keeps the labels from the attacks; they are used for scores alone.
        image_shape: (C, H, W); needed only where neither images nor auxiliary ones are given.
        batch_size: images behind each update; by default as many as ``images`` or ``labels`` give, or else 1.
        gallery: other images among which the originals have to be found again.
        normalize: (means, deviations) per channel, if clients normalise images before they call the model.
        seed: of the attacker's randomness.
        device: where to attack; by default where the model is.
        cache: folder that keeps the judge of classes, and what defences learn, for the next audit.

    Raises:
        FedveilError: what was given does not fit, the model can't be attacked, or an attack needs what is missing.
    """
    if not isinstance(model, nn.Module):
        raise FedveilError(f"model: expected an nn.Module with the weights that the server sent, got {model!r}")
    if defense is not None and not isinstance(defense, Defense | PreparedDefense):
        raise FedveilError(f"defense: expected a defence such as fv.Defense's subclasses are, got {defense!r}")
    if image_shape is not None:
        if not isinstance(image_shape, list | tuple) or len(image_shape) != 3:
            raise FedveilError(f"image_shape: expected (C, H, W), got {image_shape!r}")
        channels, height, width = image_shape
        image_shape = (channels, height, width)
    if not any(True for _ in model.parameters()):
        raise FedveilError(f"model: {type(model).__name__} has no parameters")
    place = next(model.parameters()).device if device is None else as_device(device)
    held = None if auxiliary is None else as_images("auxiliary", *_pair(auxiliary))
    target = _target(model, images, held, image_shape, mode, normalize)
    if held is not None:
        as_labels("auxiliary: labels", held.labels, len(held), classes=target.classes)
    updates = as_updates(model, update)
    if labels is None and isinstance(images, Images):
        labels = images.labels
    size = batch_size_of(updates, images, labels, batch_size)
    notes: list[str] = []
    told = None if labels is None else as_labels("labels", labels, size * len(updates), classes=target.classes)
    seen = observations_of(model, updates, repeats, told, size)
    seen, unsure = with_likely_rates(target, seen, counted=told is None or not labels_known)
    notes += unsure
    notes += check_directions(target, update, seen, None if images is None else as_floats("images", images))
    victims = None
    if images is not None:
        truth = told
        if truth is None:
            truth = torch.cat(
                [
                    recover_labels(one.update, batch_size=size, target=target, weights=one.weights, auxiliary=held)
                    for one in seen
                ]
            )
            notes.append("labels were not given: scores take those that were recovered from the updates for true")
            if size > 1:
                notes.append("whose is whose in a batch is unknown: scores by class (judge and baseline) are left out")
        victims = victims_of(as_images("images", images, truth), size, gallery is not None)
    fit = Stateless(NoDefense()) if defense is None else defense
    chosen = chosen_attacks(attacks, fit, auxiliary=held is not None, trained_images=trained_images is not None)
    if attacks is None and len(chosen) == 1:
        notes.append(
            "no auxiliary images were given: adaptive attacks, the baseline and the judge of classes are left out"
        )
    if victims is not None:
        if (note := small_note(target.image_shape)) is not None:
            notes.append(note)
        victims = with_draws(victims, trained_images, fit, 1 + len(repeats))
    seen_as = {"observations": 1 + len(repeats), "local_steps": updates[0].local_steps}
    context = None if held is None else _context(held, target, place, derive_seed(seed, "attacker"), cache)
    trained_on, preparations = _prepare(chosen, fit, context, **seen_as)
    by_class = held if told is not None or size == 1 else None
    scorer = _scorer(victims, by_class, gallery, target, told is not None, seed, place, cache)
    attacker = Attacker(
        target,
        chosen,
        held,
        preparations,
        trained_on,
        labels_known and told is not None,
        derive_seed(seed, "attack"),
        **seen_as,
    )
    if any(not preparation.surrogate.complete for preparation in preparations.values()):
        notes.append("the defence changes the loss or the update in a way that no attack here reckons with: incomplete")
    if victims is not None and held is not None and (twins := _twins(victims, held)):
        notes.append(f"{twins} of the originals are among the auxiliary images: the attacker holds what it is to find")
    report = audit_updates(attacker, seen, victims, scorer=scorer, device=place)
    return replace(report, notes=(*notes, *report.notes))


def _twins(victims: Sequence[VictimBatch], auxiliary: Images) -> int:
    known = {pixels.numpy().tobytes() for pixels in auxiliary.pixels}
    return sum(pixels.numpy().tobytes() in known for batch in victims for pixels in batch.images.pixels)


def _pair(auxiliary: Any) -> tuple[Any, Any]:
    if isinstance(auxiliary, Images):
        return auxiliary, None
    if isinstance(auxiliary, tuple) and len(auxiliary) == 2:
        return auxiliary
    raise FedveilError(f"auxiliary: expected (images, labels), got {type(auxiliary).__name__}")


def _target(
    model: nn.Module,
    images: Pictures | None,
    auxiliary: Images | None,
    image_shape: tuple[int, int, int] | None,
    mode: Mode,
    normalize: tuple[Sequence[float], Sequence[float]] | None,
) -> TargetModel:
    shape = image_shape
    for what, given in (("images", images), ("auxiliary", auxiliary)):
        if given is None:
            continue
        channels, height, width = as_floats(what, given).shape[1:]
        if shape is not None and shape != (channels, height, width):
            raise FedveilError(f"{what}: expected images of shape {shape}, got {(channels, height, width)}")
        shape = (channels, height, width)
    if shape is None:
        raise FedveilError("image_shape: (C, H, W) has to be given where no images are")
    target = target_model(model, image_shape=shape, classes=0, mode=mode, normalize=normalize)
    target.module.float()
    target = replace(target, classes=count_classes(target))
    check_attackable(target)
    return target


def _context(
    auxiliary: Images, target: TargetModel, device: torch.device, seed: int, cache: str | Path | None
) -> DefenseContext:
    """The attacker's: it has only auxiliary images, and a small classifier stands in for the client's in the defence."""
    spec = ModelSpec("convnet", target.image_shape, target.classes)
    return DefenseContext(auxiliary, spec, device, seed, None if cache is None else Path(cache))


def _prepare(
    attacks: Sequence[Attack],
    defense: Defense[Any] | PreparedDefense,
    context: DefenseContext | None,
    *,
    observations: int,
    local_steps: int,
) -> tuple[TrainedOn, dict[PreparationKey, AttackerPreparation]]:
    if isinstance(defense, Stateless):
        defense = defense.settings
    trained_on = defense.trained_on if isinstance(defense, Defense) else TrainedOn.PUBLIC
    keys = {
        preparation_key(attack, trained_on, 0, observations=observations, local_steps=local_steps) for attack in attacks
    }
    wanted = [key for key in keys if key is not None]
    if not wanted or context is None:
        return trained_on, {}
    if isinstance(defense, Defense):
        defense = defense.shadow(context.public, context, defense.pretrain(context))
    return trained_on, {
        key: prepare_attacker(
            defense,
            context.public,
            key,
            classes=context.model.classes,
            device=context.device,
            stream=torch_stream(context.seed, "inverse"),
        )
        for key in wanted
    }


def _scorer(
    victims: list[VictimBatch] | None,
    auxiliary: Images | None,
    gallery: Pictures | None,
    target: TargetModel,
    labelled: bool,
    seed: int,
    device: torch.device,
    cache: str | Path | None,
) -> Scorer | None:
    if victims is None:
        return None
    originals = torch.cat([batch.images.pixels for batch in victims])
    untouched = Images(originals, torch.cat([batch.labels for batch in victims]))
    others: Tensor | None = None
    if gallery is not None:
        others = (as_floats("gallery", gallery) * 255).round().to(torch.uint8)
        if others.shape[1:] != originals.shape[1:]:
            raise FedveilError(f"gallery: expected images of shape {target.image_shape}, got {tuple(others.shape[1:])}")
    scorer = build_scorer(
        auxiliary,
        None if others is None else Gallery(torch.cat([originals, others])),
        classes=target.classes,
        seed=seed,
        device=device,
        untouched=untouched if labelled else None,
        cache=None if cache is None else Path(cache),
    )
    return replace(scorer, labels_true=labelled)
