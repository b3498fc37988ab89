"""Texts that would take very long to read are answered at once."""

import time

import pytest

from metatransfer import UserError
from metatransfer.cli.config_files import check_config_text, check_limits
from metatransfer.cli.rewriting import rewrite_arguments

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
HARMFUL = [
    (BOMB, "anchors are expanded"),
    ("model: &a {b: *a}", "contains itself"),
    ("model: " + "[" * 5000 + "]" * 5000, "nested"),
    ("model: " + "{a: " * 500 + "}" * 500, "nested"),
    ("model: " + "9" * 100_000, "digits"),
    ("model: 0x" + "9" * 100_000, "digits"),
    ("- x\n" * 300_000, "characters"),
]


@pytest.mark.parametrize(("text", "words"), HARMFUL, ids=[words for _, words in HARMFUL])
def test_harmful_texts(text, words):
    started = time.perf_counter()
    with pytest.raises(UserError, match=f"mine.*{words}"):
        check_config_text(text, "mine")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 100_000, "{a: " + "9" * 100_000 + "}"])
def test_harmful_arguments(value):
    for arguments in (["--model.x", value], [f"--model.x={value}"]):
        with pytest.raises(UserError, match="argument '"):
            rewrite_arguments(arguments)


def test_ordinary_texts_pass():
    check_limits("base: &b {c: [1, 2]}\nother: {<<: *b, d: *b}\n", "mine")
    check_limits("not: [valid", "mine")
