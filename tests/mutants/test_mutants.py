"""Small mutations of the package, each of which some tests must notice.

``mutants.yaml`` lists them: the file below ``src/metatransfer``, the text that is replaced, the new text, and the tests
that must fail then. To add one, add an entry; the text must occur once in its file. They run by ``pytest -m mutants``,
about 15 seconds each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import ROOT

MUTANTS = yaml.safe_load((ROOT / "tests" / "mutants" / "mutants.yaml").read_text(encoding="utf-8"))
SOURCE = ROOT / "src" / "metatransfer"


def name_of(mutant):
    return f"{mutant['file']}: {mutant['what']}"


def test_every_mutant_can_be_made():
    """Texts and tests move; an entry that no longer fits tests nothing."""
    wrong = []
    for mutant in MUTANTS:
        count = (SOURCE / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"])
        missing = []
        for test in mutant["tests"]:
            path, *names = test.split("::")
            text = (ROOT / "tests" / path).read_text(encoding="utf-8") if (ROOT / "tests" / path).exists() else ""
            missing += [test for name in names or [""] if not text or f"def {name.partition('[')[0]}" not in text]
        if count != 1 or missing or mutant["old"] == mutant["new"]:
            wrong.append((name_of(mutant), count, missing))
    assert not wrong
    assert len({name_of(mutant) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_the_mutant_is_noticed(mutant, tmp_path):
    shutil.copytree(SOURCE, tmp_path / "src" / "metatransfer", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "src" / "metatransfer" / mutant["file"]
    path.write_text(path.read_text(encoding="utf-8").replace(mutant["old"], mutant["new"]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    run = lambda *arguments: subprocess.run(  # noqa: E731
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run("-c", "import metatransfer; print(metatransfer.__file__)").stdout.startswith(str(tmp_path))
    tests = [str(ROOT / "tests" / test) for test in mutant["tests"]]
    found = run("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests)
    assert found.returncode == 1, f"no test failed:\n{found.stdout[-2000:]}{found.stderr[-500:]}"
