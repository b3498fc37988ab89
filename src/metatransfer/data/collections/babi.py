"""The bAbI tasks: questions about short stories; and a generated world of who is where."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metatransfer.checks import check_count, check_seed
from metatransfer.data.readers.story_source import Question, StorySource, question_of, read_babi, words_from
from metatransfer.data.readers.text_source import Words
from metatransfer.data.sources import SPLITS, Collection, LazyParts, Source
from metatransfer.errors import UserError
from metatransfer.functional.random import random_uniforms, stream_keys

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
VERBS = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
_QUESTIONS = 5  # of a generated story, one after every second sentence
_TASKS = 20


class Babi(Collection):
    """Questions about short stories: the bAbI tasks (Weston et al. 2015, 1502.05698), or a generated world like them.

    A sample is a story with a question, as :class:`~metatransfer.Tokens` of one row per sentence: ``ids`` and ``mask``
    ``(N, 1 + sentences, words)``, the question first, then the story from its last sentence to its first one. The
    answers are the classes; a list of answers is one class. Nothing is downloaded. Without ``root`` the stories are
    generated: people go to places and are asked for, as in task 1 (*Mary went to the office. Where is Mary?*). The
    generated training, validation and test stories are different ones.

    Args:
        root: folder with the files, such as ``qa1_single-supporting-fact_train.txt``; ``null`` generates stories.
        task: number of the task, 1 to 20.
        stories: number of generated training stories, with 5 questions each; validation and test have a tenth each.
        seed: seed of the generated stories.

    Raises:
        UserError: a number out of range, or a task other than 1 without ``root``.
    """

    of_texts = True
    divided_by = "sample"

    def __init__(self, root: str | None = None, task: int = 1, stories: int = 1000, seed: int = 0) -> None:
        check_count(1, _TASKS, task=task)
        check_count(10, 10000, stories=stories)
        check_seed(seed=seed)
        if root is None and task != 1:
            raise UserError(f"only task 1 can be generated, but task={task}: set root to the folder of the bAbI files.")
        self.root, self.task, self.stories, self.seed = root, task, stories, seed

    def parts(self) -> Mapping[str, Source]:
        """The questions of each split; a tenth of the training stories are for validation unless they have a file."""
        return LazyParts(self._part, SPLITS)

    def unlabelled(self, path: str | Sequence[str]) -> tuple[Source, tuple[str, ...]]:
        """The questions of a file, with or without answers, named by file and line; or texts that end in a question."""
        if not isinstance(path, str):
            return StorySource([question_of(text) for text in path], "the stories"), tuple(path)
        asked = [one._replace(answer=None) for one in read_babi(path)]
        return StorySource(asked, f"'{path}'"), tuple(f"{Path(path).name}:{one.line}" for one in asked)

    def encoder(self, training: Source) -> Words:
        """The words of the training stories; the training samples may be some of them."""
        source = self.opened()["train"]
        assert isinstance(source, StorySource)
        return source.words()

    def encoder_from(self, state: Mapping[str, Any]) -> Words:
        """The words of a checkpoint."""
        return words_from(state["vocabulary"])

    def protocol(self) -> dict[str, Any]:
        """The task, and how stories are divided or generated."""
        card = {"task": self.task, "lengths": "padded to the longest story"}
        if self.root is None:
            return card | {"split": "generated", "stories": self.stories, "story_seed": self.seed}
        given = self._files("valid")
        return card | {"split": "as given" if given else "the last tenth of the training stories for val"}

    def _part(self, split: str) -> Source:
        where = f"bAbI task {self.task} {split}"
        if self.root is None:
            return StorySource(generated(self.stories, self.seed)[split], where)
        if split == "test":
            return StorySource(read_babi(self._file("test")), where)
        if validation := self._files("valid"):
            return StorySource(read_babi(validation[0] if split == "val" else self._file("train")), where)
        asked = read_babi(self._file("train"))
        first = asked[len(asked) * 9 // 10].story  # questions about one story stay together
        chosen = [one for one in asked if (one.story >= first) == (split == "val")]
        if not chosen:
            raise UserError(f"{where} has too few stories to divide: add some, or put a file qa{self.task}_valid.txt.")
        return StorySource(chosen, where)

    def _files(self, word: str) -> list[Path]:
        return sorted(Path(self.root or "").expanduser().glob(f"qa{self.task}_*{word}.txt"))

    def _file(self, word: str) -> Path:
        if found := self._files(word):
            return found[0]
        raise UserError(
            f"'{self.root}' has no file qa{self.task}_*_{word}.txt: put it there; it is part of bAbI v1.2 "
            "(tasks_1-20_v1-2.tar.gz), folder en-10k."
        )


def generated(stories: int, seed: int) -> dict[str, list[Question]]:
    """The questions of each split of the generated world, a function of the arguments; no story occurs twice."""
    tenth = max(1, stories // 10)
    sizes = {"train": stories, "val": tenth, "test": tenth}
    found: dict[str, list[Question]] = {}
    drawn = _different(seed)
    for split, size in sizes.items():
        found[split] = [question for _ in range(size) for question in next(drawn)]
    return found


def _different(seed: int) -> Iterator[list[Question]]:
    """Endless stories, all different."""
    seen, number = set(), 0
    while True:
        story = _story(seed, number)
        if story[-1].sentences[:-1] not in seen:
            seen.add(story[-1].sentences[:-1])
            yield story
        number += 1


def _story(seed: int, number: int) -> list[Question]:
    """The questions of one story: two people move, then one who has moved is asked for."""
    draws = iter(random_uniforms(stream_keys(seed, number), 7 * _QUESTIONS).tolist())

    def pick(names: Sequence[str]) -> str:
        return names[int(next(draws) * len(names))]

    told: list[str] = []
    where: dict[str, str] = {}
    found = []
    for _ in range(_QUESTIONS):
        for _ in range(2):
            who, verb, place = pick(PEOPLE), pick(VERBS), pick(PLACES)
            where[who] = place
            told.append(f"{who} {verb} the {place}.")
        asked = pick(list(where))
        found.append(Question((*told, f"Where is {asked}?"), where[asked], number))
    return found
