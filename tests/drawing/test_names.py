"""Names of classes in figures."""

from metatransfer.drawing.names import short_names


def test_names_that_would_look_alike_are_told_apart():
    assert short_names(["NKo \U0010fffd", "NKo \U0010fffe", "Greek"]) == ["NKo □ (0)", "NKo □ (1)", "Greek"]
