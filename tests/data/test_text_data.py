"""Texts as tokens: splits, vocabularies, padding, batches of similar lengths, and the sentence of every mistake."""

import csv
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from metatransfer import UserError
from metatransfer.batches import LabelledBatch, Tokens, UnlabelledBatch
from metatransfer.data.text_data import TextDataModule
from metatransfer.data.text_tokenizers import Encoded, Words

GENERATOR = np.random.default_rng(0)
VOCABULARY = [f"word{number}" for number in range(30)]
LABELS = [f"kind {number % 3}" for number in range(240)]
TEXTS = [" ".join(GENERATOR.choice(VOCABULARY, GENERATOR.integers(1, 40))) for _ in LABELS]
PARTS = ["train"] * 180 + ["validation"] * 30 + ["test"] * 30


def write(path, texts=TEXTS, labels=LABELS, parts=PARTS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "part"])
        writer.writerows(zip(texts, labels, parts, strict=True))
    return str(path)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "t.csv")


def data(path, **options):
    return TextDataModule(path, **{"batch_size": 8, **options})


def read(module, split):
    part = module.split(split)
    return part.read(np.arange(len(part)), torch.device("cpu"))


# ---- splits


def test_one_file_is_divided_class_by_class(path):
    module = data(path)
    sizes = {name: len(part) for name, part in module.splits.items()}
    assert sizes == {"train": 168, "val": 24, "test": 48}
    texts = [text for split in sizes for text in module.texts(split)]
    assert sorted(texts) == sorted(TEXTS)
    for split in sizes:
        labels = [module.class_names[label] for label in module.split(split).labels]
        where = [TEXTS.index(text) for text in module.texts(split)]
        assert labels == [LABELS[place] for place in where]
        assert module.show(split, 2) == module.texts(split)[2]
    assert module.protocol()["split"] == "stratified at random, seed 0"
    assert module.sample_shape() == ()


def test_files_and_columns_bring_their_splits(tmp_path, path):
    rows = {
        name: [place for place, part in enumerate(PARTS) if part == name] for name in ("train", "validation", "test")
    }
    files = {
        name: write(tmp_path / f"{name}.csv", *([part[place] for place in places] for part in (TEXTS, LABELS, PARTS)))
        for name, places in rows.items()
    }
    given = data(files["train"], val=files["validation"], test=files["test"])
    column = data(path, split="part")
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert given.texts(split) == column.texts(split) == [TEXTS[place] for place in rows[name]]
        assert given.split(split).source.fingerprint() == column.split(split).source.fingerprint()
    assert given.protocol()["split"] == "as given"
    no_val = data(files["train"], test=files["test"])
    assert [len(part) for part in no_val.splits.values()] == [162, 18, 30]


def test_the_fingerprint_is_of_the_texts_whatever_cuts_them(tmp_path, path):
    first = data(path).split("train").source.fingerprint()
    assert data(path, tokenizer=None, max_length=3).split("train").source.fingerprint() == first
    other = write(tmp_path / "o.csv", [TEXTS[0] + "x", *TEXTS[1:]])
    assert data(other).split("train").source.fingerprint() != first


# ---- tokens


def test_words():
    words = Words.of(["It's a TEST, a test.", "Ünï 2"])
    assert words.vocabulary == ["a", "test", ",", ".", "2", "it's", "ünï"]
    assert words.size == 9
    encoded = words(["a Test unseen", "...", "  ", "ünï a a a"], 3)
    assert [encoded.flat[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)] == [
        [2, 3, 1],
        [5, 5, 5],
        [1],
        [8, 2, 2],
    ]
    cased = Words.of(["A a"], lower=False)
    assert cased.vocabulary == ["A", "a"]
    again = Words.from_state(words.state())
    assert again(["a Test unseen"], 9).flat.tolist() == [2, 3, 1]


def test_the_vocabulary_is_of_the_training_texts(tmp_path):
    texts = [text if part == "train" else text + " secret" for text, part in zip(TEXTS, PARTS, strict=True)]
    module = data(write(tmp_path / "t.csv", texts), split="part")
    module.setup()
    assert sorted(module.tokenizer.vocabulary) == sorted(VOCABULARY)
    assert module.vocabulary_size == 32
    x = read(module, "test")
    assert ((x.ids == 1).sum(1) == 1).all()
    few = data(write(tmp_path / "f.csv", [f"own{place}" for place in range(240)]), split="part", labels_per_class=2)
    assert few.vocabulary_size == 2 + 6


def test_another_seed_has_other_words(tmp_path):
    """Words of texts that the other division tests on would give away what is not to be seen."""
    module = data(write(tmp_path / "t.csv", [f"own{place}" for place in range(240)]))
    module.setup()
    before = read(module, "test")
    twin = module.reseeded(1)
    for one in (module, twin):
        assert sorted(one.tokenizer.vocabulary) == sorted(one.texts("train"))
        assert (read(one, "train").ids > 1).all()
        assert (read(one, "test").ids == 1).all()
    assert set(twin.texts("train")) != set(module.texts("train"))
    assert torch.equal(before.ids, read(module, "test").ids)


def test_another_seed_shares_the_tokens_of_a_file(path, pretrained):
    module = data(path, tokenizer=str(pretrained))
    assert module.reseeded(1).split("train").source is module.split("train").source


def test_padding_is_to_the_longest_of_a_batch(path):
    module = data(path, max_length=20)
    longest = [min(20, len(text.split())) for text in module.texts("test")]
    for place, batch in enumerate(module.test_dataloader()):
        assert isinstance(batch, LabelledBatch)
        assert isinstance(batch.x, Tokens)
        lengths = longest[8 * place : 8 * place + 8]
        assert batch.x.ids.shape == batch.x.mask.shape == (len(lengths), max(lengths))
        assert batch.x.ids.dtype == batch.x.mask.dtype == torch.int64
        assert batch.x.mask.sum(1).tolist() == lengths
        assert (batch.x.ids[batch.x.mask == 0] == 0).all()
        for row, number in enumerate(batch.number.tolist()):
            words = [module.tokenizer.vocabulary[i - 2] for i in batch.x.ids[row, : lengths[row]].tolist()]
            assert words == module.texts("test")[number].split()[:20]


def test_padded_of_nothing():
    assert Encoded([]).padded(np.arange(0), 0)[0].shape == (0, 1)


def test_tokens_are_made_once(path, monkeypatch):
    module = data(path)
    calls = []
    original = Words.__call__
    monkeypatch.setattr(Words, "__call__", lambda self, *a: calls.append(len(a[0])) or original(self, *a))
    for _ in range(2):
        list(module.test_dataloader())
        list(module.train_dataloader())
    assert calls == [240]


# ---- batches of similar lengths


def epochs(module, count, split="train"):
    sampler = module._sampler(split, True)
    return [sampler.order(epoch) for epoch in range(count)]


def test_every_sample_once_in_every_epoch_and_reproducibly(path):
    module = data(path, batch_size=16)
    orders = epochs(module, 3)
    for order in orders:
        assert sorted(order.tolist()) == list(range(168))
    assert not np.array_equal(orders[0], orders[1])
    again = epochs(data(path, batch_size=16), 3)
    assert all(np.array_equal(one, two) for one, two in zip(orders, again, strict=True))
    backwards = module._sampler("train", True)
    assert all(np.array_equal(backwards.order(epoch), orders[epoch]) for epoch in (2, 0, 1))
    assert not np.array_equal(epochs(data(path, batch_size=16, seed=1), 1)[0], orders[0])


def padding(module):
    masks = [batch.x.mask for batch in module.train_dataloader()]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_padding_is_saved(path, monkeypatch):
    saved = padding(data(path))
    monkeypatch.setattr(TextDataModule, "_sampler", TextDataModule.__mro__[1]._sampler)
    plain = padding(data(path))
    assert saved < 0.1 < 0.3 < plain


def test_the_batches_of_all_processes_have_similar_lengths(path):
    module, world = data(path, batch_size=4), 3
    module.trainer = type("Trainer", (), {"world_size": world})()
    sampler = module._sampler("train", True)
    assert sampler.step == 12
    lengths = module.split("train").source.encoded.lengths[module.split("train").indices[sampler.order(0)]]
    spread = np.ptp(lengths[: 168 // 12 * 12].reshape(-1, 12), axis=1)
    assert spread.mean() < 6 < np.ptp(lengths)
    ordered = lengths.reshape(-1, 12).mean(1)
    assert not (np.diff(ordered) >= 0).all()  # the steps are shuffled


def test_what_is_left_out_has_any_length(path):
    """The last, incomplete step is drawn before the sorting, not from the longest texts."""
    module = data(path, batch_size=50)
    mean = module.split("train").source.encoded.lengths[module.split("train").indices].mean()
    left = [
        module.split("train").source.encoded.lengths[module.split("train").indices[order[150:]]].mean()
        for order in epochs(module, 30)
    ]
    assert abs(np.mean(left) - mean) < 2


def test_classes_can_be_drawn_equally_often(tmp_path):
    labels = ["rare" if place % 10 == 0 else "often" for place in range(240)]
    module = data(write(tmp_path / "t.csv", labels=labels), balance="oversample")
    y = torch.cat([batch.y for batch in module.train_dataloader()])
    assert abs(int((y == 0).sum()) - len(y) // 2) <= 8


# ---- prediction and checkpoints


@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
def test_texts_to_label(tmp_path, path, name):
    lines = ["word1 word2", "", "unknown"] if name == "p.txt" else ["id,text", "7,word1 word2", "8,unknown"]
    (tmp_path / name).write_text("\n".join(lines))
    module = data(path, predict=str(tmp_path / name))
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert isinstance(batch, UnlabelledBatch)
    assert batch.files == ((f"{name}:1", f"{name}:3") if name == "p.txt" else (f"{name}:2", f"{name}:3"))
    assert batch.x.mask.tolist() == [[1, 1], [1, 0]]
    assert batch.x.ids[1].tolist() == [1, 0]
    assert module.unlabelled()[0].texts == ["word1 word2", "unknown"]


class Nothing(pl.LightningModule):
    def training_step(self, batch, _):
        self.seen = batch.x.ids.max()

    def predict_step(self, batch, _):
        return batch.x.ids

    def configure_optimizers(self):
        return None


def trainer(tmp_path):
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


def test_the_vocabulary_goes_with_the_checkpoint(tmp_path, path):
    module = data(path)
    fit = trainer(tmp_path)
    fit.fit(Nothing(), module)
    fit.save_checkpoint(tmp_path / "c.ckpt")
    (tmp_path / "p.txt").write_text("word3 word1\nother")
    # the training file is gone
    later = data(str(tmp_path / "gone.csv"), predict=str(tmp_path / "p.txt"))
    (ids,) = trainer(tmp_path).predict(Nothing(), later, ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert ids.tolist() == [[2 + module.tokenizer.vocabulary.index(word) for word in ("word3", "word1")], [1, 0]]
    # tokens that were made before are forgotten
    changed = data(write(tmp_path / "n.csv", ["new " + text for text in TEXTS]))
    before = read(changed, "test").ids[0, 0]
    changed.load_state_dict(module.state_dict())
    assert (int(before), int(read(changed, "test").ids[0, 0])) == (2, 1)


def test_another_tokenizer_than_the_checkpoint(path, pretrained):
    module = data(path, tokenizer=str(pretrained))
    state = module.state_dict()
    data(path, tokenizer=str(pretrained)).load_state_dict(state)
    data(path, tokenizer=None).load_state_dict(state)
    with pytest.raises(UserError, match=r"trained with the tokenizer '.*', but the data has 'words': its numbers"):
        data(path).load_state_dict(state)
    with pytest.raises(UserError, match="trained with the tokenizer 'words', but the data has"):
        data(path, tokenizer=str(pretrained)).load_state_dict(data(path).state_dict())
    file = pretrained / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match="whose file has changed since"):
        data(path, tokenizer=str(pretrained)).load_state_dict(state)


# ---- a pretrained model's tokeniser


@pytest.fixture
def pretrained(tmp_path):
    """A folder with a tokeniser that asks for a fixed length, as many do."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", *VOCABULARY[:20]]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    inner.enable_padding(pad_id=3, pad_token="[PAD]", length=50)
    inner.enable_truncation(7)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_file(path, pretrained):
    module = data(path, tokenizer=str(pretrained), max_length=10)
    module.setup()
    assert module.vocabulary_size == 24
    x, texts = read(module, "test"), module.texts("test")
    assert x.ids.shape[1] == 10
    for row, text in enumerate(texts):
        words = [VOCABULARY.index(word) for word in text.split()][:8]
        expected = [0, *(4 + word if word < 20 else 2 for word in words), 1]
        assert x.ids[row].tolist() == expected + [3] * (10 - len(expected))
        assert x.mask[row].tolist() == [1] * len(expected) + [0] * (10 - len(expected))


@pytest.mark.parametrize("named", ['{"pad_token": "word7"}', '{"pad_token": {"content": "word7"}}', "{", None])
def test_the_padding_token_may_stand_elsewhere(path, pretrained, named):
    import tokenizers

    inner = tokenizers.Tokenizer.from_file(str(pretrained / "tokenizer.json"))
    inner.no_padding()
    inner.save(str(pretrained / "tokenizer.json"))
    if named is not None:
        (pretrained / "tokenizer_config.json").write_text(named)
    expected = 11 if named and "word7" in named else 3
    assert data(path, tokenizer=str(pretrained)).tokenizer.pad == expected


# ---- mistakes

BAD = {
    "file": ({"train": "nowhere.csv"}, "text file 'nowhere.csv' does not exist"),
    "both": ({"split": "part", "test": "x.csv"}, "one file has all splits, but test is given, too"),
    "split word": ({"split": "label"}, "line 2: column 'label' holds 'kind 0', but must hold one of train, val"),
    "column": ({"label": "lable"}, "Did you mean label?"),
    "length": ({"max_length": 0}, "max_length must be a number above 0"),
    "lower": ({"tokenizer": "package:x", "lower": True}, "lower is for tokenizer=words"),
    "transform": ({"transform": [torch.nn.Identity()]}, "transform changes pictures"),
    "tokenizer": ({"tokenizer": "no/such-model"}, "tokenizer 'no/such-model' is neither a folder nor a model"),
    "predict": ({"predict": "nowhere.txt"}, "text file 'nowhere.txt' does not exist"),
    "nothing": ({}, "there is nothing to label: give a file of texts, --data.predict FILE"),
}


def built(**options):
    module = TextDataModule(**options)
    module.setup("fit")
    module.setup("predict")


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    options, words = BAD[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        built(**{"train": path, **options})
    assert words in str(caught.value), str(caught.value)


def test_no_training_rows_and_no_test(tmp_path):
    with pytest.raises(UserError, match="no rows for train in column 'part', only for test"):
        data(write(tmp_path / "t.csv", parts=["test"] * 240), split="part").setup()
    with pytest.raises(UserError, match="has no test split"):
        data(write(tmp_path / "t.csv", parts=["train"] * 240), split="part").setup("test")


def test_texts_without_tokens(path):
    module = data(path, tokenizer=None)
    module.setup()
    assert len(module.texts("train")) == 168
    with pytest.raises(UserError, match="tokenizer is null, so that there are texts but no tokens"):
        next(iter(module.train_dataloader()))


def test_mistakes_of_a_tokenizer_file(path, pretrained, monkeypatch):
    with pytest.raises(UserError, match="max_length must be above 2, the marks that tokenizer"):
        data(path, tokenizer=str(pretrained), max_length=2).setup()
    content = (pretrained / "tokenizer.json").read_text()
    (pretrained / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer") as caught:
        data(path, tokenizer=str(pretrained)).setup()
    assert "\n" not in str(caught.value)
    (pretrained / "tokenizer.json").write_text(content)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'metatransfer\[text\]', or set tokenizer=words"):
        data(path, tokenizer=str(pretrained)).setup()
