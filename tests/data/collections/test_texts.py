"""Texts as tokens: files, vocabularies, padding, tokenizers, and the sentence of every mistake."""

import csv
import sys

import numpy as np
import pytest
import torch

from metatransfer.data.collections import Texts
from metatransfer.data.readers.text_source import Encoded, Words
from metatransfer.data.sources import subset
from metatransfer.errors import UserError

GENERATOR = np.random.default_rng(0)
VOCABULARY = [f"word{number}" for number in range(30)]
LABELS = [f"kind {number % 3}" for number in range(60)]
TEXTS = [" ".join(GENERATOR.choice(VOCABULARY, GENERATOR.integers(1, 40))) for _ in LABELS]
PARTS = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10


def write(path, texts=TEXTS, labels=LABELS, parts=PARTS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "part"])
        writer.writerows(zip(texts, labels, parts, strict=True))
    return str(path)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "t.csv")


def encoded(data, part="all", training=None):
    source = data.opened()[part]
    return source.encoded(data.encoder(source if training is None else training))


def read(source):
    return source.read(torch.arange(len(source)), torch.device("cpu"))


# ---- files


def test_one_file_comes_undivided(path):
    source = Texts(path).opened()["all"]
    assert source.class_names == ("kind 0", "kind 1", "kind 2")
    assert [source.class_names[label] for label in source.labels] == LABELS
    assert [source.show(index) for index in range(60)] == TEXTS
    assert source.sample_shape == ()
    assert source.in_memory


def test_files_and_columns_bring_their_splits(tmp_path, path):
    rows = {name: [place for place, part in enumerate(PARTS) if part == name] for name in dict.fromkeys(PARTS)}
    files = {
        name: write(tmp_path / f"{name}.csv", *([part[place] for place in places] for part in (TEXTS, LABELS, PARTS)))
        for name, places in rows.items()
    }
    given = Texts(files["train"], val=files["validation"], test=files["test"]).opened()
    column = Texts(path, split="part").opened()
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert given[split].texts == column[split].texts == [TEXTS[place] for place in rows[name]]
        assert given[split].fingerprint() == column[split].fingerprint()
    assert list(Texts(files["train"], test=files["test"]).opened()) == ["train", "test"]


def test_the_fingerprint_is_of_the_texts_whatever_cuts_them(tmp_path, path):
    first = Texts(path).opened()["all"].fingerprint()
    assert encoded(Texts(path, max_length=3)).fingerprint() == first
    other = write(tmp_path / "o.csv", [TEXTS[0] + "x", *TEXTS[1:]])
    assert Texts(other).opened()["all"].fingerprint() != first


def test_a_target_needs_no_labels(tmp_path, path):
    (tmp_path / "n.csv").write_text("text\none\ntwo\n")
    part = Texts(str(tmp_path / "n.csv")).unlabelled_parts()["all"]
    assert part.withheld is None
    assert part.source.texts == ["one", "two"]
    assert Texts(path).unlabelled_parts()["all"].withheld.tolist() == LABELS
    with pytest.raises(UserError, match="no column 'label'"):
        Texts(str(tmp_path / "n.csv")).opened()


@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
def test_texts_to_label(tmp_path, path, name):
    lines = ["word1 word2", "", "unknown"] if name == "p.txt" else ["id,text", "7,word1 word2", "8,unknown"]
    (tmp_path / name).write_text("\n".join(lines))
    data = Texts(path)
    source, names = data.unlabelled(str(tmp_path / name))
    assert names == ((f"{name}:1", f"{name}:3") if name == "p.txt" else (f"{name}:2", f"{name}:3"))
    x = read(source.encoded(data.encoder(data.opened()["all"])))
    assert x.mask.tolist() == [[1, 1], [1, 0]]
    assert x.ids[1].tolist() == [1, 0]


# ---- words


def test_words():
    words = Words.of(["It's a TEST, a test.", "Ünï 2"], True, 3)
    assert words.vocabulary == ["a", "test", ",", ".", "2", "it's", "ünï"]
    assert words.size == 9
    assert not words.shared
    found = words(["a Test unseen", "...", "  ", "ünï a a a"])
    assert [found.flat[a : a + n].tolist() for a, n in zip(found.offsets, found.lengths, strict=True)] == [
        [2, 3, 1],
        [5, 5, 5],
        [1],
        [8, 2, 2],
    ]
    assert Words.of(["A a"], False, 3).vocabulary == ["A", "a"]
    assert Words.of(["It's a TEST, a test.", "Ünï 2"], True, 4).key() != words.key()


def test_the_vocabulary_is_of_the_training_texts(tmp_path):
    data = Texts(write(tmp_path / "t.csv", [f"own{place}" for place in range(60)]))
    whole = data.opened()["all"]
    train = subset(whole, np.arange(0, 60, 2))
    encoder = data.encoder(train)
    assert sorted(encoder.vocabulary) == sorted(f"own{place}" for place in range(0, 60, 2))
    x = read(whole.encoded(encoder)).ids[:, 0]
    assert (x[::2] > 1).all()
    assert (x[1::2] == 1).all()
    assert (read(train.encoded(encoder)).ids > 1).all()


def test_padding_is_to_the_longest_of_a_batch(path):
    data = Texts(path, max_length=20)
    source = encoded(data)
    words = data.encoder(source).vocabulary
    longest = [min(20, len(text.split())) for text in TEXTS]
    assert source.lengths(np.arange(60)).tolist() == longest
    x = source.read(torch.tensor([[5, 3], [9, 1]]), torch.device("cpu"))
    lengths = [longest[place] for place in (5, 3, 9, 1)]
    assert x.ids.shape == x.mask.shape == (2, 2, max(lengths))
    assert x.ids.dtype == x.mask.dtype == torch.int64
    assert x.mask.sum(-1).flatten().tolist() == lengths
    assert (x.ids[x.mask == 0] == 0).all()
    assert [words[number - 2] for number in x.ids[0, 0, : lengths[0]].tolist()] == TEXTS[5].split()[:20]


def test_padded_of_nothing():
    assert Encoded([]).padded(np.arange(0), 0)[0].shape == (0, 1)


def test_tokens_are_made_once(path, monkeypatch):
    calls = []
    original = Words.__call__
    monkeypatch.setattr(Words, "__call__", lambda self, texts: calls.append(len(texts)) or original(self, texts))
    source = encoded(Texts(path))
    for _ in range(2):
        read(source)
    assert calls == [60]


def test_texts_without_tokens(path):
    data = Texts(path, tokenizer=None)
    source = data.opened()["all"]
    assert data.encoder(source) is None
    assert source.show(3) == TEXTS[3]
    with pytest.raises(UserError, match="tokenizer is null, but this method learns from tokens"):
        read(source)


# ---- checkpoints


def test_the_words_of_a_checkpoint(tmp_path, path):
    data = Texts(path)
    encoder = data.encoder(data.opened()["all"])
    later = Texts(str(tmp_path / "gone.csv")).encoder_from(encoder.state())  # the training file is gone
    assert later(["word3 other"]).flat.tolist() == [2 + encoder.vocabulary.index("word3"), 1]
    assert later.key() == encoder.key()
    cased = Texts(path, tokenizer="cased words").encoder(data.opened()["all"])
    assert not Texts(path).encoder_from(cased.state()).lower


def test_another_tokenizer_than_the_checkpoint(path, pretrained):
    data = Texts(path, tokenizer=str(pretrained))
    source = data.opened()["all"]
    state = data.encoder(source).state()
    assert data.encoder_from(state).shared
    assert Texts(path, tokenizer=None).encoder_from(state) is None
    with pytest.raises(UserError, match=r"with tokenizer '.*', but the data has 'words': set the tokenizer of"):
        Texts(path).encoder_from(state)
    with pytest.raises(UserError, match="trained with tokenizer 'words', but the data has"):
        data.encoder_from(Texts(path).encoder(source).state())
    file = pretrained / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match="whose file has changed"):
        data.encoder_from(state)


# ---- a pretrained model's tokenizer


@pytest.fixture
def pretrained(tmp_path):
    """A folder with a tokenizer that asks for a fixed length, as many do."""
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
    data = Texts(path, tokenizer=str(pretrained), max_length=10)
    assert data.encoder(data.opened()["all"]).size == 24
    x = read(encoded(data))
    assert x.ids.shape[1] == 10
    for row, text in enumerate(TEXTS):
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
    data = Texts(path, tokenizer=str(pretrained))
    assert data.encoder(data.opened()["all"]).pad == expected


# ---- mistakes

BAD = {
    "file": ({"path": "nowhere.csv"}, "table 'nowhere.csv' does not exist"),
    "both": ({"split": "part", "test": "x.csv"}, "one file has all splits, but test is given, too"),
    "split word": ({"split": "label"}, "line 2: 'label' holds 'kind 0', but must hold one of train, val"),
    "column": ({"label": "lable"}, "Did you mean label?"),
    "length": ({"max_length": 0}, "max_length must be a number above 0"),
    "tokenizer": ({"tokenizer": "no/such-model"}, "tokenizer 'no/such-model' is neither a folder nor a model"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(tmp_path, path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    options, words = BAD[name]
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        encoded(Texts(**{"path": path, **options}))
    assert words in str(caught.value), str(caught.value)


def test_no_training_rows(tmp_path):
    with pytest.raises(UserError, match="no rows for train in 'part', only for test"):
        Texts(write(tmp_path / "t.csv", parts=["test"] * 60), split="part").opened()
    with pytest.raises(UserError, match=r"'nowhere\.txt' does not exist"):
        Texts(write(tmp_path / "t.csv")).unlabelled("nowhere.txt")


def test_mistakes_of_a_tokenizer_file(path, pretrained, monkeypatch):
    def opened(**options):
        return encoded(Texts(path, tokenizer=str(pretrained), **options))

    with pytest.raises(UserError, match="max_length must be above 2, the special tokens that tokenizer"):
        opened(max_length=2)
    content = (pretrained / "tokenizer.json").read_text()
    (pretrained / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a tokenizer") as caught:
        opened()
    assert "\n" not in str(caught.value)
    (pretrained / "tokenizer.json").write_text(content)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'metatransfer\[text\]', or set tokenizer=words"):
        opened()
