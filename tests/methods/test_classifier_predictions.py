"""Predictions of classifiers for samples that are given in Python: tensors, image files and texts."""

import numpy as np
import pytest
import torch
from PIL import Image

from metatransfer import (
    MLP,
    Conv4,
    FineTuneModule,
    ImageFolder,
    LabelledDataModule,
    Texts,
    TfidfSVMModule,
    TokenAverage,
    UserError,
)
from metatransfer.data_info import datamodule_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for place, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for number in range(6):
            Image.fromarray(np.full((28, 28), 120 * place + number, np.uint8)).save(folder / name / f"{number}.png")
    return folder


def named(module, *names):
    module.class_names = names
    return module.train()


def test_samples_in_memory_give_names():
    module = named(FineTuneModule(MLP((5,), (4,)), num_classes=3), "a", "b", "c")
    x = torch.rand(300, 5)
    expected = ["abc"[place] for place in module.eval()(x).argmax(-1).tolist()]
    module.train()
    for samples in (x, x.numpy(), list(x), list(x.numpy())):
        assert module.predict(samples) == expected
    assert module.training
    found = module.predictions(x)
    assert found.files[299] == "299"
    torch.testing.assert_close(found.probabilities, module.eval()(x).softmax(-1).detach())


def test_image_files_are_read_as_those_of_the_training(pictures):
    data = LabelledDataModule(ImageFolder(str(pictures), image_size=28, channels=1))
    module = named(FineTuneModule(Conv4(hidden_channels=4), num_classes=2), "dark", "light")
    files = [pictures / "light" / "3.png", str(pictures / "dark" / "0.png")]
    found = module.predictions(files, data)
    assert found.files == tuple(map(str, files))
    x = torch.stack([torch.full((1, 28, 28), value / 255) for value in (123, 0)])
    torch.testing.assert_close(found.probabilities, module.eval()(x).softmax(-1).detach())
    assert found.labels == module.predict(files, data)
    assert len(module.predict(str(pictures), data)) == 12, "a folder"
    with pytest.raises(UserError, match=r"image file '.*9\.png' does not exist"):
        module.predict([pictures / "dark" / "9.png"], data)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "t.csv"
    rows = [f"{'good fine' if number % 2 else 'bad poor'} thing {number},{'yn'[number % 2]}" for number in range(40)]
    file.write_text("\n".join(["text,label", *rows]))
    return LabelledDataModule(Texts(str(file)))


def test_texts_name_themselves(texts):
    module = FineTuneModule(TokenAverage(texts.info().vocabulary_size), num_classes=2)
    found = module.predictions(["good thing", "poor", "never seen"], texts)
    assert found.files == ("good thing", "poor", "never seen")
    assert found.probabilities.shape == (3, 2)


def test_the_classical_method_takes_texts_alone(texts):
    module = named(TfidfSVMModule(num_classes=2), "good", "bad")  # in the order of their labels, n and y
    module.fit_data(texts)
    assert module.predict(["a good fine thing", "bad, poor"]) == ["good", "bad"]
    assert module.predictions(["good"]).files == ("good",)
    with pytest.raises(UserError, match="must be a list of texts"):
        module.predict("good")


@pytest.mark.parametrize("samples", [["a.png"], "folder"])
def test_files_without_a_data_module(samples):
    module = FineTuneModule(MLP((5,), (4,)), num_classes=3)
    assert datamodule_of(module) is None
    with pytest.raises(UserError, match="read by the data module of the training: call predict"):
        module.predict(samples)


def test_samples_that_do_not_fit():
    module = FineTuneModule(Conv4(hidden_channels=4), num_classes=3)
    with pytest.raises(UserError, match="no samples to label"):
        module.predict([])
    with pytest.raises(UserError, match="must be floating point"):
        module.predict(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"for rows of numbers, such as those of a table, use another network: .* MLP"):
        module.predict(torch.zeros(2, 7))
