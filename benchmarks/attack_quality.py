"""Does the attack work on undefended updates? Mean PSNR over victims at round 0, with pictures and a JSON record.

    python benchmarks/attack_quality.py --victims 32 --out runs/attack_quality

Victims are private images; the attack's settings were chosen on public ones. Each victim sends the gradient of one image at
the seeded initial weights; labels are known.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from fedveil.attacks import InvertingGradients, Knowledge, Observation
from fedveil.attacks.figures import draw_reconstructions, save
from fedveil.attacks.scoring import mse, psnr, ssim
from fedveil.fl.data import Images, load_data, split_train
from fedveil.fl.hooks import NoHooks
from fedveil.fl.messages import ThreatModel, UpdateKind
from fedveil.fl.models import ModelSpec, build_model, init_model
from fedveil.fl.seeding import torch_stream
from fedveil.fl.training import LocalTraining, local_update


def observe(victims: Images, model: ModelSpec) -> list[Observation]:
    weights, classifier = init_model(model, 0), build_model(model)
    training = LocalTraining(kind=UpdateKind.GRADIENT, epochs=1, batch_size=1, learning_rate=0.1)
    observations = []
    for number in range(len(victims)):
        one = victims.take(torch.tensor([number]))
        sent = local_update(classifier, weights, one, NoHooks(), training, torch_stream(0, "victim", number)).update
        observations.append(Observation(number, 0, sent, weights, 1, labels=one.labels))
    return observations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", nargs="+", default=["mni152", "cifar10"])
    parser.add_argument("--models", nargs="+", default=["lenet", "convnet"])
    parser.add_argument("--out", type=Path, default=Path("runs/attack_quality"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    results = []
    for name in arguments.data:
        data = load_data(name)
        private = split_train(data.train, public_fraction=0.05, auxiliary_fraction=0.2, seed=0).private
        order = torch.randperm(len(private), generator=torch_stream(0, "quality"))[: arguments.victims]
        victims = private.take(order)
        for model_name in arguments.models:
            model = ModelSpec(model_name, victims.shape, len(data.classes))
            attack = InvertingGradients(steps=arguments.steps)
            began = time.perf_counter()
            found = attack(observe(victims, model), Knowledge(ThreatModel(), model, device, seed=0))
            seconds = time.perf_counter() - began
            originals, images = victims.floats(), torch.cat([f.images for f in found])
            error = mse(images, originals)
            results.append(
                {
                    "data": name,
                    "model": model_name,
                    "victims": len(victims),
                    "attack": repr(attack),
                    "psnr_mean": float(psnr(error).mean()),
                    "psnr_std": float(psnr(error).std()),
                    "psnr_least": float(psnr(error).min()),
                    "ssim_mean": float(ssim(images, originals).mean()),
                    "mse_mean": float(error.mean()),
                    "seconds": seconds,
                    "hardware": hardware,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                }
            )
            last = results[-1]
            print(f"{name:8} {model_name:8} PSNR {last['psnr_mean']:.2f} +- {last['psnr_std']:.2f} dB  {seconds:.0f} s")
            figure = draw_reconstructions(originals[:8], None, {"inverting_gradients": images[:8]})
            save(figure, arguments.out / f"{name}_{model_name}.png")
    (arguments.out / "record.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
