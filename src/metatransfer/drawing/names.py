"""Names of classes in figures: short, without formulas, in fonts that have their letters."""

import functools
from collections import Counter
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# letters that matplotlib's own font lacks are looked for in those of these fonts that are installed
_MORE = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Nirmala UI", "Noto Sans Devanagari", "Arial Unicode MS",
)  # fmt: skip


@functools.cache
def _fonts() -> dict[str, frozenset[int]]:
    """The letters of each usable font."""
    found: dict[str, frozenset[int]] = {}
    for font in font_manager.fontManager.ttflist:
        if font.name == "DejaVu Sans" or font.name in _MORE:
            found.setdefault(font.name, frozenset(FT2Font(font.fname).get_charmap()))
    return dict(sorted(found.items(), key=lambda pair: pair[0] != "DejaVu Sans"))


def plain(text: str) -> str:
    """Escapes dollar signs, between which matplotlib expects formulas, and letters that are not valid Unicode."""
    return text.replace("$", r"\$").encode("utf-8", "replace").decode()


def short_names(names: Iterable[str], width: int = 22) -> list[str]:
    """Names of classes in their order, without their middle if they are long, since numbers are often at the end.

    Letters that no installed font has are drawn as boxes; a name without any other becomes ``class <place>``.
    Names that would look alike get their place.
    """
    known, end, found = frozenset().union(*_fonts().values()), width // 3, []
    for place, name in enumerate(names):
        shown = name if len(name) <= width else f"{name[: width - end - 1].rstrip()}…{name[-end:].lstrip()}"
        drawn = "".join(letter if ord(letter) in known else "□" for letter in shown)
        found.append(plain(drawn) if drawn.strip("□ …") else f"class {place}")
    times = Counter(found)
    return [f"{name} ({place})" if times[name] > 1 else name for place, name in enumerate(found)]


def use_fonts(figure: Figure) -> None:
    """Lets all texts of a figure use the fonts that have their letters."""
    for text in figure.findobj(Text):
        text.set_fontfamily(list(_fonts()))
