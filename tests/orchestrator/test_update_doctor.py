from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedveil.attacks.diagnosis.wording import PYTHON
from fedveil.orchestrator.cli import main
from fedveil.orchestrator.update_doctor import OPTIONS

Tell = Callable[..., tuple[int, str, str]]

NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))


made = Net()
number = 3


def asks(width):
    return Net(width)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """What the server sent; its weights and a gradient lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("doctor_net.py").write_text(NET)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(net.state_dict(), "sent.pt")
    torch.save(gradient(net), "gradient.pt")
    return net


def gradient(net: nn.Module) -> dict[str, Tensor]:
    x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    return dict(zip(dict(net.named_parameters()), grads(net, x, torch.tensor([2])), strict=True))


def grads(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Run the doctor and return its exit code and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        with torch.random.fork_rng():
            torch.manual_seed(1)  # for models that make other weights each time
            code = main(["doctor", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.usefixtures("model")
def test_a_gradient_in_a_file(tell: Tell) -> None:
    code, out, _ = tell("--update", "gradient.pt", "--model", "./doctor_net.py:Net", "--weights", "sent.pt")
    assert code == 0
    lines = out.splitlines()
    assert lines[-1] == "images can be solved for"
    assert any(line.startswith("helps    labels: 2, by the sign of 3.weight and 3.bias (idlg); ") for line in lines)
    # 16 * 8 + 8 numbers, and 8 * 3 + 3.
    assert [line.split()[:2] for line in lines if line.split()[:1] in (["1"], ["3"])] == [["1", "136"], ["3", "27"]]
    assert not [line for line in lines if "neutral  model: " in line]
    assert any(
        line.startswith("neutral  weights: the gradient of 3.weight is what one image leaves at") for line in lines
    )


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("name", ["doctor_net:Net", "./doctor_net.py:made"])
def test_without_weights_it_says_what_rests_on_them(tell: Tell, name: str) -> None:
    code, out, _ = tell("--update", "gradient.pt", "--model", name, "--image-shape", "1x4x4")
    assert code == 0
    lines = out.splitlines()
    (line,) = [line for line in lines if line.startswith(f"neutral  model: its weights are as {name} makes them; ")]
    assert line.endswith(" -> --weights FILE")
    # They are not, and it tells.
    assert any(line.startswith("hinders  weights: ") for line in lines)


@pytest.mark.usefixtures("model")
def test_a_model_that_makes_the_very_weights_needs_no_file(tell: Tell) -> None:
    Path("same_net.py").write_text(NET + "\nimport torch\nmade.load_state_dict(torch.load('sent.pt'))\n")
    _, out, _ = tell("--update", "gradient.pt", "--model", "./same_net.py:made", "--image-shape", "1x4x4")
    assert "neutral  model: " not in out
    assert "neutral  weights: the gradient of 3.weight is what one image leaves at the weights given, to " in out


def test_every_word_of_python_has_an_option() -> None:
    python, options = asdict(PYTHON), asdict(OPTIONS)
    assert {name for name, said in options.items() if not said.startswith("--") or said == python[name]} == set()
    assert {name for name, said in options.items() if ("{" in said) != ("{" in python[name])} == set()


def test_it_names_options_where_python_has_keywords(model: nn.Module, tell: Tell) -> None:
    x, y = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2])
    batch = dict(zip(dict(model.named_parameters()), grads(model, x, y), strict=True))
    torch.save(batch, "batch.pt")
    torch.save({name: -0.01 * g for name, g in gradient(model).items()}, "change.pt")
    torch.save({name: 1.1 * p.detach() for name, p in model.named_parameters()}, "after.pt")
    given = ("--model", "doctor_net:Net", "--weights", "sent.pt")
    said = {
        name: "".join(tell("--update", f"{name}.pt", *options, *given)[1:])
        for name, options in {
            "batch": ("--batch-size", "2"),
            "change": ("--kind", "delta"),
            "gradient": ("--kind", "delta"),
            "after": (),
        }.items()
    }
    assert "at least 4 are behind it, not 2 -> say --batch-size 4 or more" in said["batch"]
    assert "look at that too (--batch-size 1)" in said["batch"]
    assert " -> say --kind delta (or weights) --learning-rate RATE --local-steps N" in said["change"]
    assert " -> say --kind gradient" in said["gradient"]
    assert "say --kind delta (or --kind weights, for those after training)" in said["after"]
    # What has no option is named as what it is of.
    for text in said.values():
        assert not [
            word for word in text.split() if "fv." in word and "fv.audit(" not in word and "fv.Surro" not in word
        ]


def test_weights_after_training_and_their_change(model: nn.Module, tell: Tell) -> None:
    change = {name: -0.1 * g for name, g in gradient(model).items()}
    np.savez("change.npz", **{name: c.numpy() for name, c in change.items()})
    np.savez("after.npz", *(p.detach().numpy() + change[n].numpy() for n, p in model.named_parameters()))
    given = ("--model", "doctor_net:Net", "--weights", "sent.pt", "--learning-rate", "0.1", "--local-steps", "1")
    for file, kind in (("after.npz", "weights"), ("change.npz", "delta")):
        _, out, _ = tell("--update", file, "--kind", kind, *given)
        assert "update: a weight change, 1 local step(s), learning rate 0.1; 163 numbers in 4 tensors" in out
        assert "labels: 2, by the sign of" in out


def test_what_cannot_be_inverted_exits_with_1(model: nn.Module, tell: Tell) -> None:
    broken = gradient(model)
    broken["1.bias"][0] = torch.nan
    torch.save(broken, "broken.pt")
    code, out, _ = tell("--update", "broken.pt", "--kind", "gradient", "--model", "doctor_net:Net")
    assert code == 1
    assert "stops    values: 1 NaN or infinite entries, in 1.bias; " in out
    assert out.splitlines()[-1] == "can't be inverted as it is: values"


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "doctor_net:Net"], "--model: this is of an update; name that too (--update FILE)"),
        (["--learning-rate", "0.1"], "--learning-rate: this is of an update; name that too (--update FILE)"),
        (["--update", "gradient.pt"], "--model: missing; name the model that the update is of"),
        (["--update", "gradient.pt", "--model", "Net"], "--model Net: expected MODULE:NAME, or ./net.py:NAME"),
        (["--update", "gradient.pt", "--model", "no_such:Net"], "--model: no_such: there is no module 'no_such'"),
        (["--update", "gradient.pt", "--model", "doctor_net:Nut"], "--model doctor_net:Nut: doctor_net has no Nut"),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:asks"],
            "--model doctor_net:asks: calling it without arguments fails (asks() missing",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:number"],
            "--model doctor_net:number: this is no nn.Module but a int",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:Net", "--image-shape", "28"],
            "--image-shape 28: expected channels, height and width, 3x32x32 for example",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:Net", "--image-shape", "1x99999x99999"],
            "--image-shape 1x99999x99999: 9,999,800,001 values in an image; allowed: up to 50,331,648",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:Net", "--batch-size", "1000000"],
            "--batch-size 1000000: more images than any attack finds; allowed: up to 4096",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:Net", "--batch-size", "0"],
            "--batch-size 0: allowed: from 1",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:Net", "--local-steps", "2"],
            "--learning-rate and --local-steps are of a weight change: say --kind delta, or weights",
        ),
        (
            ["--update", "gradient.pt", "--model", "doctor_net:Net", "--weights", "gradient.npz"],
            "gradient.npz: cannot be read",
        ),
    ],
)
def test_mistakes(tell: Tell, arguments: list[str], message: str) -> None:
    code, out, err = tell(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"fedveil: {message}")
    assert err.count("\n") == 1


def test_weights_of_another_model(model: nn.Module, tell: Tell) -> None:
    torch.save({**model.state_dict(), "5.bias": torch.ones(1)}, "other.pt")
    code, _, err = tell("--update", "gradient.pt", "--model", "doctor_net:Net", "--weights", "other.pt")
    assert code == 2
    assert err.startswith("fedveil: --weights other.pt: they are not the model's (")
    assert "5.bias" in err
    torch.save({"1.weight": torch.ones(2)}, "wrong.pt")
    code, _, err = tell("--update", "wrong.pt", "--kind", "weights", "--model", "doctor_net:Net")
    assert (code, err) == (2, "fedveil: weights: the model has no 1.weight of shape (2,)\n")
