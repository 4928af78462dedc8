"""What ``fedveil init`` writes: an experiment file for the data at hand, with a word on each key, that runs as it is.

It is a small sweep of two settings, no protection and the main one, since a number means something beside another only.
Images, victims, steps and networks are few, so that it takes minutes: enough to see what a run is like and to change it, too
few for a result. What the data do not decide is what `tune_configs/demo.yaml` has, which shows something within minutes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass

from fedveil.fl.data import entry_of, load_data
from fedveil.fl.data.images import ImageData
from fedveil.fl.errors import FedveilError
from fedveil.fl.models.convnet import ConvNet
from fedveil.orchestrator.config import load_experiment
from fedveil.orchestrator.config.yaml import parse
from fedveil.orchestrator.run.setup import check_setups
from fedveil.orchestrator.tracking.names import cut

FEW_IMAGES = 1200
"""Training images at most, unless two clients need more: a quarter of them, the attacker's, still teach it something."""
SIDE = 32
"""Pixels a side where the source lets choose: attacks cost as many times more as there are more pixels."""
LEAST = ConvNet.smallest_side
"""Smaller images are scaled to so many pixels: the network takes no smaller ones."""
_SMALLEST = 28
_CLIENTS, _PER_CLIENT, _PER_CLASS = 4, 50, 10
"""At most so many clients, as far as each has so many images, and of a class on average; no fewer than two."""
_PUBLIC, _AUXILIARY = 0.15, 0.25
_VICTIMS, _GALLERY = 8, 60
_NAMED_CLASSES, _NAME = 6, 20
"""So many classes are named in the comment, by so many characters."""

_TEXT = """\
# A first experiment on {name}: {count} training images of {height} x {width} px, {channels}, {classes}.
# Made by fedveil init to run in a few minutes on two cores{longer}; too small for a result, fit for a look.
#
#   fedveil sweep {file}
#   fedveil report {experiment} --html {experiment}.html   # a page to hand on
#
# What else there is: fedveil list defenses (attacks, models, data, ...); each setting of one: fedveil list defenses latent.
# Completion in an editor: fedveil schema > schema.json, and "yaml-language-server: $schema=schema.json" in a comment above.
experiment: {experiment}

data:
  name: {quoted}
{size}{limit}  public_fraction: {public}  # of the training images, for server and clients alike
  auxiliary_fraction: {auxiliary}  # the attacker's own images, and the judge's; the rest is dealt to the clients
  partition: iid  # or {{kind: dirichlet, alpha: 0.5}}: clients that differ in their classes

model: {{name: convnet, width: 16}}

fl:
  clients: {clients}
  rounds: 8
  local_epochs: 1  # passes of each client over its images in a round
  batch_size: 16
  learning_rate: 0.03

references: {{measure: false}}  # true: is federating better than doing without? Some minutes more

audit:
  rounds: [0, last]  # the updates of these are attacked
  victims: {victims}  # images that are attacked in each; 64 and more for a result
  clients: 2  # whose they are
  gallery: {gallery}  # the line-up in which each has to be found
  attacks:
    - &plain {{name: strongest, steps: 120}}  # knows nothing of the protection
    # Knows the protection, and trains an inverse: without it no claim holds. For a result leave out all but its name.
    - {{name: adaptive, inversion: *plain, inverse: {{steps: 60, batch_size: 32, width: 16}}, calibration: 0}}

tracking: {{images: {images}}}  # none: no pictures leave; grid: a figure of the first victims; all: each image by itself

# seeds: [0, 1, 2]  # repeats everything, which takes three times as long: chance is no result

search:
  panel:  # a trial each; the same victims under each of them
    - defense: none
    - defense: {{name: latent, k: 5, random_networks: 8, trained_networks: 4, steps: 100}}  # 5 similar images share one
    # - defense: {{name: pixel_noise, strength: 0.1}}  # a control: noise of which nothing is learnt
  objectives: {{utility/val_accuracy: max, privacy/mse: max}}
"""


@dataclass(frozen=True)
class FirstFile:
    """An experiment file.

    Attributes:
        experiment: its name.
        text: YAML.
    """

    experiment: str
    text: str


def first_file(name: str, file: str) -> FirstFile:
    """Return a first experiment for a data set, which is read for it (and downloaded where it is not here yet).

    Args:
        name: of the data, as ``data.name`` has it.
        file: where it will be written, for the commands in its comments.

    Raises:
        FedveilError: there are no such data, too few of them, or they do not fit (a class has next to no images).
    """
    data, size = _small(name)
    count, own = len(data.train), 1 - _PUBLIC - _AUXILIARY
    per_client = max(_PER_CLIENT, _PER_CLASS * len(data.classes))
    least = math.ceil(2 * per_client / own)
    if count < least:
        raise FedveilError(
            f"{name}: has {count} training images; a first experiment needs {least} or more: two clients with"
            f" {per_client} each, and {_PUBLIC + _AUXILIARY:.0%} for the server and the attacker. With fewer, copy"
            " tune_configs/demo.yaml, name the data there and lower data.public_fraction, data.auxiliary_fraction and"
            " fl.clients"
        )
    kept = min(count, max(FEW_IMAGES, least))
    clients = min(_CLIENTS, int(kept * own) // per_client)
    experiment = _experiment_name(name)
    channels, height, width = data.train.shape
    larger = height * width / SIDE**2
    text = _TEXT.format(
        name=_printable(name),
        count=f"{count:,}",
        height=height,
        width=width,
        channels="grey" if channels == 1 else "colour",
        classes=_classes(data),
        file=_printable(file),
        experiment=experiment,
        quoted=json.dumps(name),
        size="" if size is None else f"  size: {size}  # pixels a side\n",
        limit=f"  limit: {kept}  # training images at most, for a quick look; null for all\n" if kept < count else "",
        public=_PUBLIC,
        auxiliary=_AUXILIARY,
        clients=clients,
        victims=max(2, round(_VICTIMS / max(1.0, larger))),
        longer="" if larger <= 1 else f" (these are of {larger:.0f} times as many pixels as meant: it takes longer)",
        gallery=_GALLERY,
        images="grid" if data.published else "none",
    )
    try:
        check_setups(*load_experiment(parse(text)))
    except FedveilError as error:
        raise FedveilError(f"{name}: these data do not fit a first experiment ({error})") from error
    return FirstFile(experiment, text)


def _small(name: str) -> tuple[ImageData, int | None]:
    """Return the images, of a side that suits, and the side that was asked for; None for the source's own."""
    size = _size(name)
    data = load_data(name, size=size)
    if size is None and min(data.train.shape[1:]) < LEAST:
        return load_data(name, size=LEAST), LEAST
    if size is None and max(data.train.shape[1:]) > SIDE:
        with suppress(FedveilError):  # of a source that has no other sizes
            return load_data(name, size=SIDE), SIDE
    return data, size


def _size(name: str) -> int | None:
    """Return the side to ask for, None for the source's own: small where there is a choice."""
    entry = entry_of(name)
    if entry.default_size is None:
        return None
    if not entry.sizes:
        return min(SIDE, entry.default_size)
    smaller = [side for side in entry.sizes if _SMALLEST <= side <= entry.default_size]
    return None if entry.default_size <= SIDE or not smaller else min(smaller)


def _experiment_name(name: str) -> str:
    """Return ``first-`` and what the data are called, as far as a folder's name may have it."""
    stem = re.split(r"[/\\]", name.partition(":")[2].rstrip("/\\") or name)[-1].removesuffix(".npz")
    letters = "".join(one for one in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(one))
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", letters).strip("-.")[:80].rstrip("-.")
    # Two names in other letters have to be told apart.
    lost = not plain or any(one.isalnum() and not one.isascii() for one in letters)
    return "-".join(filter(None, ("first", plain, hashlib.sha256(stem.encode()).hexdigest()[:6] if lost else "")))


def _classes(data: ImageData) -> str:
    names = ", ".join(cut(_printable(name), _NAME) for name in data.classes[:_NAMED_CLASSES])
    return f"{len(data.classes)} classes ({names}{', ...' if len(data.classes) > _NAMED_CLASSES else ''})"


def _printable(text: str) -> str:
    """Return text for a comment, which a line break would end."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
