"""Commands that are not Lightning's: found in their folder, imported when given, mistakes in one sentence."""

from __future__ import annotations

import sys

import pytest

from metatransfer.cli import commands, main

GREET = '''"""Greets a name."""

from metatransfer.errors import UserError



def arguments(parser):
    parser.add_argument("--config", action="config")
    parser.add_argument("--name", type=str, required=True)
    parser.add_argument("--times", type=int, default=1)


def run(settings):
    if settings.name == "nobody":
        raise UserError("nobody cannot be greeted.")
    print(" ".join([f"hello {settings.name}"] * settings.times))
'''


@pytest.fixture
def greet(tmp_path, monkeypatch):
    """A folder of commands with one more."""
    (tmp_path / "greet.py").write_text(GREET)
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("metatransfer.cli.commands.greet", None)


def complaint(capsys, *typed):
    with pytest.raises(SystemExit) as stop:
        main(list(typed))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip()


def test_a_module_is_a_command(greet, capsys):
    main(["greet", "--name", "ada", "--times=2"])
    assert capsys.readouterr().out == "hello ada hello ada\n"
    assert "_helper" not in commands.command_names()


def test_arguments_come_from_a_file_too(greet, capsys):
    (greet / "greet.yaml").write_text("name: ada\ntimes: 3\n")
    main(["greet", "--config", str(greet / "greet.yaml"), "--times", "1"])
    assert capsys.readouterr().out == "hello ada\n"


def test_help_lists_commands_without_importing_them(greet, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "greet (Greets a name)" in " ".join(capsys.readouterr().out.split())
    assert "metatransfer.cli.commands.greet" not in sys.modules


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["greet"], "lightning greet needs --name"),
        (["greet", "--name", "nobody"], "nobody cannot be greeted"),
        (["greet", "--name", "ada", "--time", "x"], "Did you mean --times?"),
        (["greet", "--name", "ada", "--times", "x"], "times must be an integer, but is 'x'"),
        (["greer"], "unknown command 'greer'. Did you mean greet?"),
    ],
)
def test_mistakes_are_one_sentence(greet, capsys, typed, words):
    message = complaint(capsys, *typed)
    assert message.startswith("error: ")
    assert words in message
    assert "\n" not in message


def test_a_class_is_built_before_the_command_runs(tmp_path, monkeypatch, capsys):
    """Through the real command: the parser alone would hand over a description of the network."""
    monkeypatch.chdir(tmp_path)
    sizes = ["--backbone.hidden_channels=4", "--samples=20", "--classes=2", "--measure=mmd"]
    main(["similarity", "--data", "Digits", "TypesetDigits", "--backbone=Conv4", *sizes])
    assert "seen through Conv4" in capsys.readouterr().out
    assert (tmp_path / "lightning_logs" / "version_0" / "similarity.csv").exists()
