"""Domain adaptation without gradients on Office-Caltech10, SURF features: all 12 pairs, every method, in one go.

python benchmarks/office_caltech10.py DIR, the folder that holds Caltech10_SURF_L10.mat and the three like it.

Each cell is a fit and a test of AdaptedFeaturesModule by the Trainer, as ``lightning fit`` and ``lightning test`` make
with the files in configs/office_caltech10. The protocol is that of the maintained table whose rows stand below ours:
rows divided by their sum, z-scores in each domain, all source samples labelled, all target samples unlabelled and then
the test, the nearest neighbour by Euclidean distance. SA is not in that table, and the constants of its other rows are
not stated with it. CORAL's row there is of an SVM whose strength is not stated: ours, with CORAL and without, is chosen
by cross-validation on the source alone, never by a label of the target. The SVM leaves features in the scale that the
z-scores and CORAL give them: standardised once more, the source would lose the covariance of the target again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from metatransfer import (
    Arrays,
    DomainDivision,
    FeatureClassifier,
    LabelledDataModule,
    LinearSVM,
    NearestNeighbors,
    Processing,
)
from metatransfer.adapters import Labelled
from metatransfer.adapters.estimators import (
    CorrelationAlignment,
    DomainAdapter,
    GeodesicFlowKernel,
    JointDistributionAdaptation,
    SubspaceAlignment,
    TransferComponentAnalysis,
)
from metatransfer.callbacks.run.report import machine
from metatransfer.data import DomainDataModule
from metatransfer.data.sampling.augment import RowSum
from metatransfer.methods.domain.adapted_features import AdaptedFeaturesModule
from metatransfer.nn import RawFeatures

FILES = {"C": "Caltech10", "A": "amazon", "W": "webcam", "D": "dslr"}
PAIRS = ["CA", "CW", "CD", "AC", "AW", "AD", "WC", "WA", "WD", "DC", "DA", "DW"]
STRENGTHS, FOLDS = (1e-4, 1e-3, 1e-2), 3  # larger ones take minutes
METHODS: dict[str, tuple[Callable[[], DomainAdapter] | None, str]] = {
    "1-NN": (None, "1-NN"),
    "SVM": (None, "SVM"),
    "SA": (lambda: SubspaceAlignment(20), "1-NN"),
    "GFK": (lambda: GeodesicFlowKernel(20), "1-NN"),
    "TCA": (lambda: TransferComponentAnalysis(30), "1-NN"),
    "JDA": (lambda: JointDistributionAdaptation(30), "1-NN"),
    "CORAL": (lambda: CorrelationAlignment(1.0), "SVM"),
}
TABLE = {
    "1-NN": [23.7, 25.8, 25.5, 26.0, 29.8, 25.5, 19.9, 23.0, 59.2, 26.3, 28.5, 63.4, 31.4],
    "SVM": [53.1, 41.7, 47.8, 41.7, 31.9, 44.6, 28.8, 27.6, 78.3, 26.4, 26.2, 52.5, 41.1],
    "GFK": [46.0, 37.0, 40.8, 40.7, 37.0, 40.1, 24.8, 27.6, 85.4, 29.3, 28.7, 80.3, 43.1],
    "TCA": [45.6, 39.3, 45.9, 42.0, 40.0, 35.7, 31.5, 30.5, 91.1, 33.0, 32.8, 87.5, 46.2],
    "JDA": [43.1, 39.3, 49.0, 40.9, 38.0, 42.0, 33.0, 29.8, 92.4, 31.2, 33.4, 89.2, 46.8],
    "CORAL": [52.1, 46.4, 45.9, 45.1, 44.4, 39.5, 33.7, 36.0, 86.6, 33.8, 37.7, 84.7, 48.8],
}


def domain(folder: Path, name: str) -> LabelledDataModule:
    """A domain as the data module reads it.

    Raises:
        SystemExit: its file is not there.
    """
    path = folder / f"{FILES[name]}_SURF_L10.mat"
    if not path.exists():
        raise SystemExit(
            f"'{path}' is not there: put the four .mat files of Office-Caltech10, SURF-800, into '{folder}'."
        )
    return LabelledDataModule(Arrays(str(path)), processing=Processing(transform=[RowSum()]))


def svm(strength: float) -> LinearSVM:
    return LinearSVM(strength, standardize=False)


def strength(data: DomainDataModule) -> float:
    """The SVM's strength that is best on parts of the source that it was not trained on."""
    batches = list(data.source_samples())
    x, y = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "y"))
    fold = torch.empty(len(y), dtype=torch.int64)
    for label in range(data.info().num_classes):
        members = (y == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(0))]
        fold[members] = torch.arange(len(members)) % FOLDS
    right = {}
    for value in STRENGTHS:
        machines = [
            svm(value).fit(Labelled(x[fold != one], y[fold != one]), data.info().num_classes) for one in range(FOLDS)
        ]
        right[value] = sum(
            int((machine.predict(x[fold == one]) == y[fold == one]).sum()) for one, machine in enumerate(machines)
        )
    return max(right, key=lambda value: right[value])


def accuracy(data: DomainDataModule, adapter: DomainAdapter | None, classifier: FeatureClassifier) -> float:
    """Of a fit, in percent."""
    module = AdaptedFeaturesModule(RawFeatures(data.info().sample_shape), data.info().num_classes, adapter, classifier)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return 100 * float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])


def main() -> None:
    """Measures, prints, writes results/office_caltech10.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*are constant in the")
    start, found = time.perf_counter(), {}
    pairs = {
        pair: DomainDataModule(
            {"source": domain(options.folder, pair[0])},
            {"target": domain(options.folder, pair[1])},
            batch_size=256,
            standardize="domain",
            division=DomainDivision(transductive=True, hold_out_source=False),
        )
        for pair in PAIRS
    }
    strengths = {pair[0]: strength(pairs[pair]) for pair in ("CA", "AC", "WC", "DC")}
    print(f"{'':12}{' '.join(f'{pair:>5}' for pair in PAIRS)}   mean")
    for method, (adapter, classifier) in METHODS.items():
        begun, scores = time.perf_counter(), {}
        for pair, data in pairs.items():
            fitted = NearestNeighbors(1, distance="euclidean") if classifier == "1-NN" else svm(strengths[pair[0]])
            scores[pair] = round(accuracy(data, adapter() if adapter else None, fitted), 1)
        mean, table = round(float(np.mean(list(scores.values()))), 1), TABLE.get(method)
        found[method] = {
            "classifier": classifier, "pairs": scores, "mean": mean,
            "published": dict(zip(PAIRS, table[:-1], strict=True)) if table else None,
            "published_mean": table[-1] if table else None, "seconds": round(time.perf_counter() - begun, 1),
        }  # fmt: skip
        print(f"{method:12}{' '.join(f'{score:5.1f}' for score in scores.values())}  {mean:5.1f}", flush=True)
        if table:
            print(f"{'  table':12}{' '.join(f'{score:5.1f}' for score in table[:-1])}  {table[-1]:5.1f}")
            gaps = [mine - theirs for mine, theirs in zip([*scores.values(), mean], table, strict=True)]
            print(f"{'  difference':12}{' '.join(f'{gap:5.1f}' for gap in gaps[:-1])}  {gaps[-1]:5.1f}")
    content = {
        "seconds": round(time.perf_counter() - start, 1), "svm_strengths": strengths, "methods": found,
        "machine": machine(torch.device("cpu")),
    }  # fmt: skip
    print(f"{content['seconds']} s; the SVM's strengths, by cross-validation on the source alone: {strengths}")
    (Path(__file__).parent / "results" / "office_caltech10.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
