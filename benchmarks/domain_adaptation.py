"""Every method of domain adaptation beside its source-only twin and the target-trained oracle, over seeds.

    python benchmarks/domain_adaptation.py digits [METHOD ...]                 the shipped configurations
    python benchmarks/domain_adaptation.py mnist_m [METHOD ...] --root DIR     those in configs/mnist_m

DIR holds MNIST (``MNIST/raw/*-ubyte``) and MNIST-M (``mnist_m/{train,test}/<label>/*.png``). Each method is trained
with the model, the data and the budget of its YAML, and tested with its last weights, which nothing has selected. A
twin starts from the same weights as its method and sees the same batches of the source. What was measured is kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path

import torch
import yaml
from lightning.pytorch.cli import instantiate_module

from metatransfer.callbacks.run.report import processor_name
from metatransfer.data import DomainDataModule
from metatransfer.experiments.comparing import measure_twins
from metatransfer.experiments.intervals import Interval
from metatransfer.experiments.training import Budget, beside_the_run
from metatransfer.methods import DomainAdaptationModule
from metatransfer.methods.twins import ADAPTATION, ORACLE

ADAPTED, PLAIN = ADAPTATION.own, ADAPTATION.reference
ROOT = Path(__file__).resolve().parents[1]
METHODS = ("dann", "cdan", "adda", "dan", "deep_coral", "mcd", "adabn")


def configuration(pair: str, method: str) -> dict:
    """The YAML of a method on a pair."""
    folder = ROOT / "configs" / ("" if pair == "digits" else pair)
    return yaml.safe_load((folder / f"{method}.yaml").read_text(encoding="utf-8"))


def data_of(config: dict, root: str | None) -> DomainDataModule:
    """The data of a YAML, its roots under another folder."""
    arguments = config["data"]["init_args"]
    for side in ("sources", "targets"):
        for domain in arguments[side].values():
            given = domain["init_args"] if isinstance(domain, dict) else {}
            if "root" in given and root is not None:
                given["root"] = str(Path(root) / Path(given["root"]).relative_to("data"))
    return instantiate_module(DomainDataModule, arguments)


def measure(pair: str, method: str, seed: int, root: str | None, *, oracle: bool) -> dict:
    """One method and its twins under one seed."""
    config = configuration(pair, method)
    data = data_of(config, root)
    kinds = {kind.__name__: kind for kind in subclasses(DomainAdaptationModule)}
    model = config["model"]
    network = model["init_args"]["backbone"]["init_args"]
    network.setdefault("in_channels", data.info().sample_shape[0])
    network.setdefault("image_size", data.info().sample_shape[1])
    torch.manual_seed(seed)
    module = instantiate_module(
        kinds[model["class_path"]], {"num_classes": data.info().num_classes, **model["init_args"]}
    )
    settings = {"accelerator": "cpu"}
    settings |= {name: value for name, value in config["trainer"].items() if name == "limit_train_batches"}
    budget = Budget(config["trainer"].get("max_epochs"), settings=settings)
    start = time.perf_counter()
    with beside_the_run(data):
        found = measure_twins(module, data, seed=seed, budget=budget, leave_out=() if oracle else (ORACLE,)).values
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def subclasses(kind: type) -> list[type]:
    """All below a class."""
    return [one for child in kind.__subclasses__() for one in (child, *subclasses(child))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=["digits", "mnist_m"])
    parser.add_argument("methods", nargs="*", default=[])
    parser.add_argument("--root")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--oracle", action="store_true", help="train on the target's labels, too")
    parser.add_argument("--part", default="", help="suffix of the result file, for runs side by side")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    path = ROOT / "benchmarks" / "results" / f"domain_adaptation_{arguments.pair}{arguments.part}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"pair": arguments.pair, "methods": {}}
    found |= {"machine": processor_name(), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    for seed in arguments.seeds:
        for method in arguments.methods or METHODS:
            known = found["methods"].setdefault(method, {})
            if str(seed) in known:
                continue
            known[str(seed)] = measure(arguments.pair, method, seed, arguments.root, oracle=arguments.oracle)
            print(method, seed, known[str(seed)], flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for method, seeds in found["methods"].items():
        rows = {name: [row[name] for row in seeds.values() if name in row] for name in (ADAPTED, PLAIN, ORACLE)}
        text = ", ".join(f"{name} {Interval.of(values)}" for name, values in rows.items() if values)
        gain = Interval.of_gain(rows[ADAPTED], rows[PLAIN])
        print(f"{method}: {text}; gain {gain} points, {len(seeds)} seeds")


if __name__ == "__main__":
    main()
