"""Encoders of Hugging Face: pooling against a loop, weights from every place, checkpoints, and every mistake."""

import hashlib
import json
import os
import pickle
import shutil
import sys

import pytest
import torch

from metatransfer import Backbone, LabelledDataModule, Texts, UserError
from metatransfer.arguments import plain_arguments
from metatransfer.batches import Tokens
from metatransfer.nn.backbones.huggingface_encoder import HuggingFaceEncoder
from metatransfer.nn.weights import no_weight_files

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnop"]
SIZE = {
    "vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 16,
}  # fmt: skip


def saved(folder, kind=transformers.BertModel, config=transformers.BertConfig, **options):
    torch.manual_seed(1)
    network = kind(config(**{**SIZE, **options})).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # larger than initial ones, so that tokens differ
            parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return network


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder as models come, and the network that was saved there."""
    folder = tmp_path_factory.mktemp("models") / "small"
    network = saved(folder)
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    inner.save(str(folder / "tokenizer.json"))
    return str(folder), network


@pytest.fixture
def copied(original, tmp_path):
    return shutil.copytree(original[0], tmp_path / "copy")


@pytest.fixture(scope="module")
def texts(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "t.csv"
    rows = [f"{' '.join('abcdefghijklmnop'[i % 7 : i % 7 + 1 + i % 9])},{'xy'[i % 2]}" for i in range(40)]
    path.write_text("\n".join(["text,label", *rows]))
    data = LabelledDataModule(Texts(str(path), tokenizer=original[0], max_length=16), eval_batch_size=20)
    return next(iter(data.train_samples())).x


def rows_of(x):
    return [ids[mask == 1] for ids, mask in zip(*x, strict=True)]


def test_the_texts_have_different_lengths(texts):
    assert len({len(row) for row in rows_of(texts)}) > 5


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_against_one_text_at_a_time(original, texts, pooling, normalize):
    folder, network = original
    encoder = HuggingFaceEncoder(folder, pooling=pooling, normalize=normalize).double().eval()
    network = network.double()
    assert encoder.out_features == 8
    features = encoder(texts)
    for row, feature in zip(rows_of(texts), features, strict=True):
        states = network(input_ids=row[None]).last_hidden_state[0]
        expected = states[0] if pooling == "cls" else sum(states) / len(states)
        expected = expected / sum(value**2 for value in expected) ** 0.5 if normalize else expected
        torch.testing.assert_close(feature, expected, rtol=1e-9, atol=1e-9)
    network.float()


def test_the_report_tells_the_file(original):
    folder, network = original
    encoder = HuggingFaceEncoder(folder)
    report = encoder.weights_report
    with open(f"{folder}/model.safetensors", "rb") as file:
        assert report.sha256 == hashlib.sha256(file.read()).hexdigest()
    assert report.file == "model.safetensors"
    assert sorted(report.kept) == sorted(encoder.state_dict())
    assert len(report.kept) == len(network.state_dict()) - 2  # the pooler's
    assert (report.dropped, report.new) == ({}, ())
    assert encoder.training
    assert (encoder.max_length, encoder.vocabulary_size) == (16, len(WORDS))


def test_all_parameters_take_part(original, texts):
    encoder = HuggingFaceEncoder(original[0])
    encoder(texts).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(hasattr(m, "reset_parameters") for m in encoder.modules() if m._parameters)  # for untrained_twin()


def test_random_weights_and_dropout(original):
    folder, network = original
    encoder = HuggingFaceEncoder(folder, weights=None, dropout=0.25)
    assert encoder.weights_report is None
    loaded = network.state_dict()
    assert not torch.equal(
        encoder.state_dict()["model.embeddings.word_embeddings.weight"], loaded["embeddings.word_embeddings.weight"]
    )
    drops = [module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert drops
    assert set(drops) == {0.25}
    assert HuggingFaceEncoder(folder, dropout=0.0).weights_report is not None


def test_weights_of_a_file(original, texts, tmp_path):
    trained = HuggingFaceEncoder(original[0]).eval()
    with torch.no_grad():
        next(trained.parameters()).add_(1)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    encoder = HuggingFaceEncoder(original[0], weights=str(tmp_path / "w.pt")).eval()
    torch.testing.assert_close(encoder(texts), trained(texts))
    assert encoder.weights_report.file == "w.pt"


def test_in_pieces_half_precision_and_torch_format(original, texts, tmp_path):
    _, network = original
    expected = HuggingFaceEncoder(original[0]).eval()(texts)
    network.save_pretrained(tmp_path / "pieces", max_shard_size="2KB")
    encoder = HuggingFaceEncoder(str(tmp_path / "pieces")).eval()
    torch.testing.assert_close(encoder(texts), expected)
    assert " and " in encoder.weights_report.file
    folder = shutil.copytree(original[0], tmp_path / "torch")
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    encoder = HuggingFaceEncoder(str(folder)).eval()
    torch.testing.assert_close(encoder(texts), expected)
    network.half().save_pretrained(tmp_path / "half")
    network.float()
    encoder = HuggingFaceEncoder(str(tmp_path / "half")).eval()
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(encoder(texts), expected, rtol=0.05, atol=0.05)
    HuggingFaceEncoder(str(tmp_path / "half"), weights=None)(texts)


def test_other_kinds_and_heads(texts, tmp_path):
    saved(tmp_path / "roberta", transformers.RobertaModel, transformers.RobertaConfig, pad_token_id=0)
    roberta = HuggingFaceEncoder(str(tmp_path / "roberta"))
    assert roberta.max_length == 15  # a position for the padding
    assert roberta(texts).shape == (20, 8)
    distil = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12, "vocab_size": len(WORDS)}
    torch.manual_seed(0)
    transformers.DistilBertModel(transformers.DistilBertConfig(**distil)).save_pretrained(tmp_path / "distil")
    assert HuggingFaceEncoder(str(tmp_path / "distil"), dropout=0.0)(texts).shape == (20, 8)
    saved(tmp_path / "head", transformers.BertForMaskedLM)
    encoder = HuggingFaceEncoder(str(tmp_path / "head"))
    assert encoder(texts).shape == (20, 8)
    assert all(name.startswith("cls.") for name in encoder.weights_report.dropped)
    assert encoder.weights_report.dropped


def test_arguments_suffice_where_the_folder_is_gone(copied, texts):
    encoder = HuggingFaceEncoder(str(copied), pooling="cls", dropout=0.0).eval()
    arguments = plain_arguments(encoder.__dict__["_init_arguments"])
    json.dumps(arguments)
    shutil.rmtree(copied)
    with no_weight_files():
        again = HuggingFaceEncoder(**arguments).eval()
        assert again.weights_report is None
        with pytest.raises(UserError, match="is neither a folder nor a model in the local cache"):
            HuggingFaceEncoder(str(copied))
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(texts), encoder(texts))
    with pytest.raises(UserError, match=r"put its config\.json into a folder"):
        HuggingFaceEncoder(**arguments)


class Narrow(HuggingFaceEncoder):
    def __init__(self, name: str):
        super().__init__(name, pooling="cls")


def test_a_subclass_keeps_its_own_arguments(original):
    assert isinstance(Narrow(original[0]), Backbone)
    assert Narrow(original[0]).__dict__["_init_arguments"] == {"name": original[0]}


def test_nothing_is_asked_of_the_network_or_printed(original, monkeypatch, capfd):
    import socket

    def refused(*_, **__):
        raise AssertionError("network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    HuggingFaceEncoder(original[0])
    HuggingFaceEncoder(original[0], weights=None)
    with pytest.raises(UserError):
        HuggingFaceEncoder("owner/absent")
    assert capfd.readouterr() == ("", "")


# ---- mistakes


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0")


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Narrow}, folder / "pytorch_model.bin")


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), {}, "has no config.json: download it into the folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), {}, "or set weights to null"),
    "no json": (lambda f: (f / "config.json").write_text("{"), {}, "config.json' is not valid JSON"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), {}, "must be an object with model_type"),
    "unknown": (lambda f: edit(f, model_type="newer"), {}, "is of model_type 'newer', whose config transformers"),
    "no encoder": (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), {}, "which is not a text encoder"),
    "pictures": (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), {}, "which is not a text encoder"),
    "other size": (lambda f: edit(f, hidden_size=4), {}, "do not fit its config.json"),
    "layers": (lambda f: edit(f, num_hidden_layers=3), {}, "tensors are missing or of another shape"),
    "heads": (lambda f: edit(f, num_attention_heads=3), {"weights": None}, "cannot be built from its config"),
    "damaged": (truncate, {}, "cannot be read"),
    "code": (pickled, {}, "cannot be read"),
    "pooling": (lambda f: None, {"pooling": "max"}, "pooling must be one of mean, cls"),
    "dropout": (lambda f: None, {"dropout": 1.0}, "dropout must be a fraction"),
    "file": (lambda f: None, {"weights": "nowhere.pt"}, "weights file 'nowhere.pt' does not exist"),
}


class Bomb:
    def __reduce__(self):
        return os.system, ("touch pwned",)


MALICIOUS = {
    "pickle": lambda f: torch.save({"embeddings": Bomb()}, f / "pytorch_model.bin"),
    "old pickle": lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings": Bomb()})),
    "pickle called safetensors": lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Bomb())),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_folder_of_a_stranger_unpickles_nothing(copied, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (copied / "model.safetensors").unlink()
    MALICIOUS[name](copied)
    with pytest.raises(UserError, match=r"^the weights in '.*' cannot be read"):
        HuggingFaceEncoder(str(copied))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
        {"attn_implementation": "stranger/kernel"},
        {"_attn_implementation": "stranger/kernel"},
        {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": []}},
    ],
)
def test_a_folder_of_a_stranger_runs_no_code_of_its_own(copied, texts, changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (copied / "evil.py").write_text("open('pwned', 'w').close()\nclass Config: pass\nclass Model: pass\n")
    expected = HuggingFaceEncoder(str(copied)).eval()(texts)
    edit(copied, **changes)
    torch.testing.assert_close(HuggingFaceEncoder(str(copied)).eval()(texts), expected)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(copied, name):
    change, options, words = BAD[name]
    change(copied)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        HuggingFaceEncoder(str(copied), **options)
    assert words in str(caught.value), str(caught.value)


def test_batches_that_do_not_fit(original):
    encoder = HuggingFaceEncoder(original[0])
    with pytest.raises(UserError, match="has positions for 16 tokens, but a text has 17: set the data's max_length"):
        encoder(Tokens(*torch.ones(2, 1, 17, dtype=torch.int64)))
    with pytest.raises(UserError, match="knows 20 tokens, but the data has number 20: set the data's tokenizer"):
        encoder(Tokens(torch.tensor([[20]]), torch.tensor([[1]])))
    with pytest.raises(UserError, match=r"reads texts as Tokens, but the samples are a tensor of shape \(2, 3\)"):
        encoder(torch.zeros(2, 3))


def test_without_the_extra(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"install the extra, pip install 'metatransfer\[text\]'"):
        HuggingFaceEncoder(original[0])
