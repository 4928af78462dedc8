"""How a diagnosis asks for what it was not told: by keywords in Python, by options on a command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What callers write to say something; each is a format that is filled with the value, where one is known.

    >>> Wording().mode.format("eval")
    "mode='eval'"

    Attributes:
        batch_size: images behind the update.
        mode: of BatchNorm and dropout.
        image_shape: of one image.
        gradient: that the update is one.
        delta: that it is a weight change.
        weights: that these are the weights after training.
        rate: the client's learning rate and number of local steps.
        steps: the same, where that number is known.
    """

    batch_size: str = "batch_size={}"
    mode: str = "mode={!r}"
    image_shape: str = "image_shape=(C, H, W)"
    gradient: str = "fv.Update.gradient(...)"
    delta: str = "fv.Update.delta(...)"
    weights: str = "fv.update_between(model, weights)"
    rate: str = "fv.Update.delta(..., learning_rate=, local_steps=)"
    steps: str = "fv.Update.delta(..., local_steps={}, learning_rate=)"

    @property
    def change(self) -> str:
        """What says that it is a weight change, of either form."""
        return f"{self.delta} (or {self.weights}, for those after training)"


PYTHON = Wording()
