"""Questions about stories: bAbI files, the generated world, sentences as rows of tokens."""

from __future__ import annotations

import pytest
import torch

import messages
from metatransfer import Babi, LabelledDataModule, UserError
from metatransfer.data.collections.babi import generated
from metatransfer.data.sources import joined

STORY = """\
1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary picked up the big red apple.
5 What does Mary carry?\tApple\t4
1 Sandra travelled to the office.
2 Where is Sandra?\toffice\t1
"""
ALL = torch.arange


def write(folder, train=STORY * 20, test=STORY, **more):
    folder.mkdir(exist_ok=True)
    for split, text in {"train": train, "test": test, **more}.items():
        (folder / f"qa3_three-supporting-facts_{split}.txt").write_text(text)
    return str(folder)


def tokens(collection, part):
    source = collection.opened()[part]
    source = source.encoded(collection.encoder(collection.opened()["train"]))
    return source, source.read(ALL(len(source)), torch.device("cpu"))


def test_a_question_has_the_story_so_far_with_the_last_sentence_first(tmp_path):
    collection = Babi(write(tmp_path / "files"), task=3)
    source, (ids, mask) = tokens(collection, "test")
    words = ["", "<unk>", *collection.encoder(collection.opened()["train"]).vocabulary]
    said = [[" ".join(words[one] for one in row if one) for row in sample] for sample in ids.tolist()]
    assert said[0] == ["where is mary", "john went to the hallway", "mary moved to the bathroom", ""]
    assert said[1][0] == "what does mary carry"
    assert said[1][1] == "mary picked up the big red apple"
    assert said[2] == ["where is sandra", "sandra travelled to the office", "", ""]
    assert torch.equal(mask, (ids > 0).long())
    assert [source.class_names[label] for label in source.labels] == ["bathroom", "apple", "office"]
    assert source.show(0) == "Mary moved to the bathroom. John went to the hallway. Where is Mary?"
    assert (
        tokens(collection, "test")[0].fingerprint() == source.fingerprint() != collection.opened()["val"].fingerprint()
    )


def test_questions_about_one_story_are_in_one_split(tmp_path):
    collection = Babi(write(tmp_path / "files", train=STORY * 10), task=3)
    parts = {name: collection.opened()[name] for name in ("train", "val")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 27, "val": 3}
    assert len(Babi(write(tmp_path / "files", valid=STORY), task=3).opened()["train"]) == 60
    assert Babi(str(tmp_path / "files"), task=3).protocol()["split"] == "as given"


def test_the_generated_world_tells_where_everyone_is():
    parts = generated(60, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 300, "val": 30, "test": 30}
    for question in parts["train"]:
        *story, asked = question.sentences
        who = asked.removeprefix("Where is ").removesuffix("?")
        assert question.answer == [line for line in story if line.startswith(who)][-1].split()[-1].removesuffix(".")
    assert parts == generated(60, seed=3) != generated(60, seed=4)
    whole = [one.sentences[:-1] for part in parts.values() for one in part if len(one.sentences) == 11]
    assert len(whole) == len(set(whole)) == 72


def test_sets_of_stories_of_different_lengths_are_joined(tmp_path):
    collection = Babi(write(tmp_path / "files", test="1 A is here now with us.\n2 Who?\toffice\t1\n"), task=3)
    (short, first), (long, second) = tokens(collection, "test"), tokens(collection, "train")
    ids, mask = joined([long, short]).read(torch.tensor([len(long), 0]), torch.device("cpu"))
    assert ids.shape == (2, *second.ids.shape[1:])
    assert torch.equal(ids[0, :2, :6], first.ids[0])
    assert not mask[0, 2:].any()
    assert torch.equal(ids[1], second.ids[0])


def test_texts_and_files_without_answers_are_labelled(tmp_path):
    collection = Babi()
    source, names = collection.unlabelled(["Mary went to the office.  John moved!\nWhere is Mary?"])
    assert source.sentences[1:] == ["Where is Mary?", "John moved!", "Mary went to the office."]
    assert len(names) == 1
    (tmp_path / "asked.txt").write_text("1 Mary went to the office.\n2 Where is Mary?\n")
    source, names = collection.unlabelled(str(tmp_path / "asked.txt"))
    assert (names, len(source.class_names)) == (("asked.txt:2",), 1)
    data = LabelledDataModule(collection, predict=str(tmp_path / "asked.txt"))
    data.setup("predict")
    assert next(iter(data.predict_dataloader())).x.ids.shape == (1, 2, 5)


def test_a_checkpoint_brings_its_words():
    data, other = LabelledDataModule(Babi(stories=20)), LabelledDataModule(Babi(stories=10))
    other.load_state_dict(data.state_dict())
    assert other.encoder.key() == data.encoder.key()
    assert data.info().vocabulary_size == 21
    assert data.content_key("val") != other.content_key("val")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("once upon a time", "bAbI file has lines such as"),
        ("1 Mary went home.\nx Where is Mary?\thome\t1", "line 2"),
        ("1 Mary went home.\n", "no question"),
        ("", "line 1"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path, text, problem):
    write(tmp_path / "files")
    (tmp_path / "files" / "qa3_three-supporting-facts_test.txt").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        len(Babi(str(tmp_path / "files"), task=3).opened()["test"])
    assert problem in messages.keep(str(error.value))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"root": "nowhere"}, "put it there"),
        ({"root": "files", "task": 4}, "qa4_*_train.txt"),
        ({"task": 2}, "set root to the folder"),
        ({"task": 21}, "from 1 to 20"),
        ({"stories": 3}, "stories must be"),
        ({"root": "few", "task": 3}, "too few stories"),
    ],
)
def test_what_is_missing_is_asked_for(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "files")
    write(tmp_path / "few", train="1 A.\n2 Who?\ta\t1\n")
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        len(Babi(**arguments).opened()["train"])
    assert problem in messages.keep(str(error.value))
