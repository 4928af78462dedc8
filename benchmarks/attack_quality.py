"""Do the attacks work on undefended updates? Mean PSNR over victims at round 0, with pictures and a JSON record.

    python benchmarks/attack_quality.py --victims 32 --attacks inverting_gradients deep_leakage --out runs/attack_quality

Victims are private images. Each sends the gradient of one image at the seeded initial weights, or the weight change of
several steps on it; labels are known.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import fmean, median, stdev

import torch

import fedveil as fv
from fedveil.attacks import ATTACKS
from fedveil.fl.data import split_train
from fedveil.fl.seeding import torch_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victims", type=int, default=32)
    parser.add_argument("--attacks", nargs="+", default=["inverting_gradients"])
    parser.add_argument("--steps", type=int, default=300, help="of each attack")
    parser.add_argument("--local-steps", type=int, default=1, help="of each victim, at the rate 0.1")
    parser.add_argument("--data", nargs="+", default=["mni152", "cifar10"])
    parser.add_argument("--models", nargs="+", default=["lenet", "convnet"])
    parser.add_argument("--out", type=Path, default=Path("runs/attack_quality"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    results = []
    for name in arguments.data:
        data = fv.load_data(name)
        private = split_train(data.train, public_fraction=0.05, auxiliary_fraction=0.2, seed=0).private
        order = torch.randperm(len(private), generator=torch_stream(0, "quality"))[: arguments.victims]
        victims = private.take(order)
        for model_name in arguments.models:
            model = fv.build_model(model_name, image_shape=victims.shape, classes=len(data.classes)).to(device)
            updates = [
                fv.client_update(model, victims.take(one), None, local_steps=arguments.local_steps)[0]
                for one in torch.arange(len(victims)).split(1)
            ]
            for attack_name in arguments.attacks:
                attack = ATTACKS[attack_name](steps=arguments.steps)
                began = time.perf_counter()
                report = fv.audit(model, updates, images=victims, attacks=[attack])
                seconds = time.perf_counter() - began
                psnrs = [record.psnr for record in report.records]
                results.append(
                    {
                        "data": name,
                        "model": model_name,
                        "victims": len(victims),
                        "local_steps": arguments.local_steps,
                        "attack": repr(attack),
                        "psnr_mean": fmean(psnrs),
                        "psnr_std": stdev(psnrs),
                        "psnr_median": median(psnrs),
                        "psnr_least": min(psnrs),
                        "above_40_db": sum(psnr > 40 for psnr in psnrs),
                        "ssim_mean": fmean(record.ssim for record in report.records),
                        "mse_mean": fmean(record.mse for record in report.records),
                        "seconds": seconds,
                        "hardware": hardware,
                        "threads": torch.get_num_threads(),
                        "torch": torch.__version__,
                    }
                )
                last = results[-1]
                print(
                    f"{name:8} {model_name:8} {attack_name:20} PSNR {last['psnr_mean']:.2f} +- {last['psnr_std']:.2f} dB,"
                    f" median {last['psnr_median']:.2f}, MSE {last['mse_mean']:.5f}, {seconds:.0f} s",
                    flush=True,
                )
                report.figure(arguments.out / f"{name}_{model_name}_{attack_name}.png")
    (arguments.out / "record.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
