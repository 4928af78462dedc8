"""``fedveil doctor --update``: a diagnosis of what lies in files."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from fedveil.attacks.audit.inputs import KindUnclear, Updates, names_in_order
from fedveil.attacks.audit.weights import update_between
from fedveil.attacks.diagnosis import Diagnosis, Finding, Outlook
from fedveil.attacks.diagnosis import examine as examine_update
from fedveil.attacks.diagnosis.wording import Wording
from fedveil.attacks.target.model import Mode, first_line
from fedveil.fl.errors import FedveilError, brief
from fedveil.fl.messages import ClientUpdate
from fedveil.fl.tensor_files import Tensors, read_tensors
from fedveil.orchestrator.config.plugins import load_plugins

COLOURS = {
    Outlook.STOPS: "bold red",
    Outlook.HINDERS: "yellow",
    Outlook.NEUTRAL: "dim",
    Outlook.HELPS: "green",
    Outlook.SOLVES: "bold green",
}
OPTIONS = Wording(
    batch_size="--batch-size {}",
    mode="--mode {}",
    image_shape="--image-shape CxHxW",
    gradient="--kind gradient",
    delta="--kind delta",
    weights="--kind weights",
    rate="--kind delta (or weights) --learning-rate RATE --local-steps N",
    steps="--kind delta (or weights) --local-steps {} --learning-rate RATE",
)


@dataclass(frozen=True, kw_only=True)
class UpdateFiles:
    """An update, and the model that it is of.

    Attributes:
        update: file with tensors by parameter name, or in the model's order; see `read_tensors`.
        model: ``MODULE:NAME`` of an ``nn.Module``, or of what makes one when it is called without arguments.
        weights: file with the ``state_dict`` that the server sent; None takes the model as it is made.
        kind: of the update; ``weights`` are those after training. None tells it by its looks, see `fedveil.audit`.
        learning_rate: the client's; None if it is not known.
        local_steps: the client's; None for one.
    """

    update: Path
    model: str | None
    weights: Path | None = None
    kind: Literal["gradient", "delta", "weights"] | None = None
    learning_rate: float | None = None
    local_steps: int | None = None


def examine(files: UpdateFiles, *, image_shape: str | None, batch_size: int | None, mode: Mode) -> Diagnosis:
    """Return the diagnosis of an update in a file.

    Args:
        files: it, and its model.
        image_shape: ``CxHxW``; None takes a usual one that fits.
        batch_size: images behind it.
        mode: of the client's BatchNorm and dropout.

    Raises:
        FedveilError: a file can't be read, does not fit the model, or the model can't be made.
    """
    shape = None if image_shape is None else _shape(image_shape)
    if batch_size is not None and batch_size < 1:
        raise FedveilError(f"--batch-size {batch_size}: allowed: from 1")
    model = _model(files.model)
    if files.weights is not None:
        _load(model, files.weights)
    try:
        found = examine_update(
            model,
            _update(model, files),
            image_shape=shape,
            batch_size=batch_size,
            mode=mode,
            normalize=None,
            words=OPTIONS,
        )
    except KindUnclear as error:
        raise FedveilError(f"{error.reason}: say {OPTIONS.change}, or {OPTIONS.gradient}") from error
    told = any(one.what == "weights" and one.outlook is Outlook.NEUTRAL for one in found.findings)
    if files.weights is not None or told:
        return found
    made = Finding(
        "model",
        Outlook.NEUTRAL,
        f"its weights are as {files.model} makes them",
        "labels of a batch and what is said of the network are right only if the server sent these",
        "--weights FILE",
    )
    return replace(found, findings=(made, *found.findings))


_MOST_VALUES = 3 * 4096 * 4096
"""Values in an image; a network is tried on it, which takes many times that memory."""


def _shape(given: str) -> tuple[int, int, int]:
    sizes = re.fullmatch(r"(\d+)[x,](\d+)[x,](\d+)", given)
    if sizes is None or "0" in sizes.groups():
        raise FedveilError(f"--image-shape {brief(given)}: expected channels, height and width, 3x32x32 for example")
    channels, height, width = map(int, sizes.groups())
    values = channels * height * width
    if values > _MOST_VALUES:
        raise FedveilError(
            f"--image-shape {brief(given)}: {values:,} values in an image; allowed: up to {_MOST_VALUES:,}"
        )
    return channels, height, width


def _model(spec: str | None) -> nn.Module:
    if spec is None:
        raise FedveilError("--model: missing; name the model that the update is of: MODULE:NAME, or ./net.py:NAME")
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise FedveilError(f"--model {brief(spec)}: expected MODULE:NAME, or ./net.py:NAME")
    try:
        module = sys.modules[load_plugins([where], Path())[-1].module]
    except FedveilError as error:
        raise FedveilError(f"--model: {error}") from error
    if not hasattr(module, name):
        raise FedveilError(f"--model {brief(spec)}: {where} has no {name}")
    made = getattr(module, name)
    if not isinstance(made, nn.Module) and callable(made):
        try:
            made = made()
        except Exception as error:  # whatever a user's code raises
            raise FedveilError(
                f"--model {brief(spec)}: calling it without arguments fails ({first_line(error)}); name a function that"
                " makes the model"
            ) from error
    if not isinstance(made, nn.Module):
        raise FedveilError(f"--model {brief(spec)}: this is no nn.Module but a {type(made).__name__}")
    return made


def _named(model: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
    return (
        tensors if isinstance(tensors, dict) else dict(zip(names_in_order(model, len(tensors)), tensors, strict=True))
    )


def _load(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(_named(model, read_tensors(path)))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2]
        raise FedveilError(f"--weights {path}: they are not the model's ({brief(reason)})") from error


def _update(model: nn.Module, files: UpdateFiles) -> Updates:
    tensors = read_tensors(files.update)
    said = files.learning_rate is not None or files.local_steps is not None
    if said and files.kind not in ("delta", "weights"):
        raise FedveilError("--learning-rate and --local-steps are of a weight change: say --kind delta, or weights")
    if files.kind is None:
        return tensors
    if files.kind == "gradient":
        return ClientUpdate.gradient(_named(model, tensors))
    steps = 1 if files.local_steps is None else files.local_steps
    if files.kind == "weights":
        return update_between(model, tensors, learning_rate=files.learning_rate, local_steps=steps)
    named, parameters = _named(model, tensors), dict(model.named_parameters())
    return ClientUpdate.delta(
        {name: tensor for name, tensor in named.items() if name in parameters},
        learning_rate=files.learning_rate,
        local_steps=steps,
        buffers={name: tensor for name, tensor in named.items() if name not in parameters},
    )


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> int:
    """Show a diagnosis, a line for each finding; return the exit code: 1 where nothing can be inverted."""
    for finding in diagnosis.findings:
        colour = COLOURS[finding.outlook]
        console.print(f"[{colour}]{finding.outlook:7}[/{colour}]  {escape(finding.line)}", soft_wrap=True)
    if diagnosis.layers:
        table = Table(box=None, header_style="bold")
        table.add_column("layer", no_wrap=True)
        for title in ("numbers", "not 0", "norm", "share"):
            table.add_column(title, justify="right")
        for layer in diagnosis.layers:
            table.add_row(
                escape(layer.name), str(layer.numbers), str(layer.sent), f"{layer.norm:.3g}", f"{layer.share:.2g}"
            )
        console.print(table)
    console.print(f"[bold]{escape(diagnosis.verdict)}[/bold]", soft_wrap=True)
    return 1 if diagnosis.of(Outlook.STOPS) else 0
