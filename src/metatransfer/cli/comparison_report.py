"""The table, the figure and the file of a comparison."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from metatransfer.callbacks.run.display import show
from metatransfer.experiments.ranking import Outcome, Ranking, contents, sentence
from metatransfer.functional.intervals import in_words
from metatransfer.storage import short_path, write_atomically

_COLUMNS = ("entry", "accuracy", "minus the best", "p", "", "s per run", "training")


def publish(
    ranking: Ranking,
    apart: Mapping[str, Sequence[Outcome]],
    folder: Path,
    card: Mapping[str, Any],
    tuned: Mapping[str, str],
) -> None:
    """Prints the table and the conclusion, and writes ``comparison.json`` and ``comparison.png``.

    Args:
        ranking: of the entries.
        apart: outcomes that are not ranked.
        folder: of the comparison.
        card: more for the file.
        tuned: by entry, what its hyper-parameter search found and took; empty if there was none.
    """
    trials = trials_in_words(card["tuning"]) if tuned else ""
    table = Table(*_COLUMNS, title=f"{card['situation']}; {card['budget']}; {len(card['seeds'])} seeds{trials}")
    if tuned:
        table.add_column("tuning")
    for name in ranking.order:
        table.add_row(*_row(ranking, name), *([tuned.get(name, "")] if tuned else []))
    for name, runs in apart.items():
        done = [one for one in runs if not one.failure]
        mean = f"{100 * sum(one.mean for one in done) / len(done):.2f} %" if done else runs[0].failure
        table.add_row(name, mean, "", "", "apart", "", done[0].note if done else "")
    for name, text in ranking.failures.items():
        table.add_row(name, "failed", "", "", "", "", text)
    picture, content = folder / "comparison.png", folder / "comparison.json"
    text = sentence(ranking)
    write_atomically(content, json.dumps({**card, **contents(ranking), "apart": _apart(apart)}, indent=2) + "\n")
    _draw(ranking, picture, text)
    lines = [text, _explained(ranking), f"results: {short_path(content)}", f"figure: {short_path(picture)}"]
    best = next((name for name in ranking.order if ranking.outcomes[name][0].command), None)
    if best is not None:
        lines += [f"'{best}', seed {ranking.outcomes[best][0].seed}:", ranking.outcomes[best][0].command]
    show(table, *lines)


def trials_in_words(tuning: Mapping[str, Any]) -> str:
    """How many trials each entry had, for the title of the table."""
    same = not any(one.get("missing") for one in tuning["entries"].values())
    return f"; {'' if same else 'at most '}{tuning['trials']} trials of tuning for each entry"


def _row(ranking: Ranking, name: str) -> list[str]:
    runs, found = ranking.outcomes[name], ranking.interval(name)
    best = ranking.order[0]
    pair = ranking.pairs.get((best, name))
    entry = f"{name} (baseline)" if runs[0].baseline else name
    tied = "tie" if pair is not None and pair.tied else ""
    difference = in_words(0.0 - pair.mean, pair.half) if pair is not None else "best"
    seconds = sum(one.seconds for one in runs) / len(runs)
    half = found.ci95 if found.ci95 == found.ci95 else None
    return [
        entry,
        in_words(found.value, half, unit=" %"),
        difference,
        f"{pair.p:.2g}" if pair is not None else "",
        tied,
        "" if runs[0].baseline else f"{seconds:.0f}",
        runs[0].note,
    ]


def _explained(ranking: Ranking) -> str:
    over = "seeds and test units" if ranking.crossed else "seeds, each with its own test samples"
    return (
        f"Differences are paired over {over}, with 95 % intervals; p is corrected for all pairs (Holm); 'tie': no "
        "significant difference from the best. Intervals of accuracies are over the seeds."
    )


def _apart(apart: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    return {name: [one.failure or one.mean for one in runs] for name, runs in apart.items()}


def _draw(ranking: Ranking, path: Path, text: str) -> None:
    from metatransfer.drawing.comparison import Bar, comparison_figure  # matplotlib takes time to import

    if not ranking.order:
        return
    bars = {}
    for name in ranking.order:
        runs, pair = ranking.outcomes[name], ranking.pairs.get((ranking.order[0], name))
        bars[name] = Bar(
            100 * ranking.mean(name), 100 * pair.half if pair is not None else 0.0, runs[0].baseline,
            ranking.tied_with_best(name), sum(one.seconds for one in runs) / len(runs), [one.curve for one in runs],
        )  # fmt: skip
    comparison_figure(bars, ranking.groups(), text).savefig(path, dpi=110)
