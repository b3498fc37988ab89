"""Memory hops and stories against loops over hops, sentences and words."""

from __future__ import annotations

import math

import pytest
import torch

from metatransfer import Tokens, UserError
from metatransfer.nn import MemoryHops, StoryMemory, position_encoding

STORIES = torch.tensor(
    [
        [[1, 2, 3, 0], [4, 5, 0, 0], [6, 1, 2, 3], [2, 0, 0, 0], [5, 6, 1, 0]],
        [[3, 0, 0, 0], [1, 2, 3, 4], [6, 5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
)
X = Tokens(STORIES, (STORIES > 0).long())
SIZE = 5


def network(tying, **arguments):
    torch.manual_seed(0)
    made = StoryMemory(7, SIZE, 3, tying, **arguments).double()
    for parameter in made.parameters():  # also the matrices, which are the identity
        torch.nn.init.normal_(parameter)
    made.words.weight.data[0] = 1e9  # padding must not be read
    return made.eval()


def sentence(table, words):
    """Words with position encoding, equation by equation."""
    words = [word for word in words.tolist() if word]
    total = [0.0] * SIZE
    for j, word in enumerate(words, start=1):
        for k in range(1, SIZE + 1):
            weight = (1 - j / len(words)) - (k / SIZE) * (1 - 2 * j / len(words))
            total[k - 1] += weight * float(table[word, k - 1])
    return torch.tensor(total, dtype=torch.float64)


def by_hand(made, story, linear=False):
    """One story, one hop and one sentence at a time."""
    told = [row for row in story[1:] if row.any()][: made.sentences]
    words, ages = (part.weight.view(len(part.weight), -1, SIZE).unbind(1) for part in (made.words, made.ages))
    query, found = sentence(words[0], story[0]), []
    for hop in range(3):
        first, second = {"adjacent": (hop, hop + 1), "layerwise": (0, 1), "key-value": (0, 0)}[made.tying]
        keys = [sentence(words[first], row) + ages[first][age] for age, row in enumerate(told)]
        values = [sentence(words[second], row) for row in told]
        if made.tying != "key-value":
            values = [value + ages[second][age] for age, value in enumerate(values)]
        scores = [float(query @ key) for key in keys]
        exps = [math.exp(score - max(scores)) for score in scores]
        weights = scores if linear else [one / sum(exps) for one in exps]
        read = sum(weight * value for weight, value in zip(weights, values, strict=True))
        found.append(weights)
        if made.tying == "adjacent":
            query = query + read
        elif made.tying == "layerwise":
            query = made.hops.maps[0] @ query + read
        else:
            query = made.hops.maps[hop] @ (query + read)
    return query, found


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("tying", ["adjacent", "layerwise", "key-value"])
def test_it_equals_a_loop(tying, linear):
    made = network(tying, sentences=3)
    with torch.no_grad():
        query, attention = made(X, torch.tensor(linear))
        for place, story in enumerate(STORIES):
            expected, weights = by_hand(made, story, linear)
            torch.testing.assert_close(query[place], expected, rtol=1e-9, atol=1e-9)
            told = len(weights[0])
            weights = torch.tensor(weights, dtype=torch.float64)
            torch.testing.assert_close(attention[place, :, :told], weights, rtol=1e-9, atol=1e-9)
            assert not attention[place, :, told:].any()


def test_a_longer_padding_changes_nothing():
    made = network("adjacent")
    padded = Tokens(*(torch.nn.functional.pad(part, (0, 2, 0, 3)) for part in X))
    with torch.no_grad():
        torch.testing.assert_close(made(padded)[0], made(X)[0])


def test_a_story_without_sentences_leaves_the_question():
    made = network("adjacent")
    empty = Tokens(X.ids[:, :1], X.mask[:, :1])
    with torch.no_grad():
        query, attention = made(Tokens(*(torch.nn.functional.pad(part, (0, 0, 0, 2)) for part in empty)))
        torch.testing.assert_close(query, made(empty)[0])
        torch.testing.assert_close(query[0], sentence(made.words.weight[:, :SIZE], X.ids[0, 0]))
    assert not attention.any()


def test_ages_have_random_gaps_in_training_alone():
    made = network("adjacent", noise=0.5)
    sentences = torch.ones(4, 50)
    assert torch.equal(made._ages(sentences)[1], torch.arange(50))
    made.train()
    ages = made._ages(sentences)
    steps = ages.diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1, 2}  # 0 where the oldest age is reached
    assert ages.max() == 49
    assert not torch.equal(ages[0], ages[1])


def test_position_encoding_sums_to_the_mean_over_a_sentence_of_one_word():
    one = position_encoding(torch.tensor([[1, 0]]), 4, torch.float64)
    assert one[0].tolist() == [[0.25, 0.5, 0.75, 1.0], [0, 0, 0, 0]]


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(UserError, match="hops must be"):
        MemoryHops(4, 0, "sum")
    with pytest.raises(UserError, match=r"tying must be one of .* Did you mean adjacent"):
        StoryMemory(7, tying="adjacen")
    with pytest.raises(UserError, match="noise must be"):
        StoryMemory(7, noise=1.0)
