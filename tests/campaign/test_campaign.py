"""Runs that are killed, disks that are full, and files that are damaged or malicious, in numbers.

Every attack is drawn from a fixed seed. What must hold: no traceback, no torn file, no code that a file has run, and
a killed run that goes on ends in the same bits. The counts are printed (``pytest -m slow -s tests/campaign``).
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import ROOT, command_line, latest_run, tiny
from metatransfer import Conv4, ProtoNetModule, UserError, open_path
from metatransfer.cli import main
from metatransfer.data.readers.text_source import TextSource
from metatransfer.nn import load_weights
from processes import exit_code, started, with_small_files

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")]

CONFIG = ROOT / "configs" / "protonet.yaml"
FIT = ["--trainer.max_epochs=3", "--data.episodes.train=8", "--checkpoint.every_n_train_steps=1"]


def all_loadable(folder):
    """The checkpoints below a folder, each of which must be whole."""
    found = sorted(folder.rglob("*.ckpt"))
    for path in found:
        assert "state_dict" in torch.load(path, weights_only=True), path
    return found


def fit(folder, *arguments):
    return command_line("fit", CONFIG, *tiny(CONFIG), *FIT, f"--trainer.default_root_dir={folder}", *arguments)


def weights(folder):
    return torch.load(latest_run(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


# ---- kills


def test_killed_runs_go_on_to_the_same_bits(tmp_path, cli):
    main(fit(tmp_path / "whole"))
    expected = weights(tmp_path / "whole")
    delays = np.random.default_rng(0).uniform(0.0, 1.5, 3)
    resumed = killed = 0
    for number, delay in enumerate(delays):
        folder = tmp_path / f"killed {number}"
        process = started(main, fit(folder), output=tmp_path / "output.txt")
        deadline = time.monotonic() + 120
        while not list(folder.rglob("last.ckpt")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        over = not process.is_alive()
        process.kill()
        process.join()
        if over:
            continue
        killed += 1
        all_loadable(folder)
        assert not [path for path in folder.rglob("*.json") if not is_json(path)]
        last = latest_run(folder) / "checkpoints" / "last.ckpt"
        main(fit(folder, "--ckpt_path", str(last)))
        found = weights(folder)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        resumed += 1
    print(f"{killed} of {len(delays)} runs were killed, and {resumed} resumed to the same bits")
    assert killed, "all runs were over before they were killed"


def is_json(path):
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def test_a_terminated_run_says_how_to_go_on(tmp_path):
    """Schedulers end runs by SIGTERM and take an exit status of 0 for success."""
    endless = ["--data.episodes.train=100000", "--trainer.val_check_interval=2"]  # the first checkpoint comes after one
    process = started(main, fit(tmp_path / "run", *endless), output=tmp_path / "output.txt")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").rglob("*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGTERM)
    assert exit_code(process, 60) in (143, -signal.SIGTERM)
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output
    assert "--ckpt_path" in output
    assert all_loadable(tmp_path / "run")


# ---- a full disk


def test_a_full_disk_is_a_sentence_and_tears_nothing(tmp_path):
    """A process that may write files of 60 kB only: every checkpoint is larger."""
    process = started(with_small_files, 60_000, main, fit(tmp_path / "run"), output=tmp_path / "output.txt")
    assert exit_code(process) != 0
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output, output[-2000:]
    assert "error: " in output
    all_loadable(tmp_path / "run")


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="only root may mount a small disk")
def test_a_small_disk_keeps_the_good_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        arguments = fit(disk, "--checkpoint.save_top_k=-1", "--trainer.max_epochs=30")
        assert exit_code(started(main, arguments, output=tmp_path / "output.txt")) != 0
        output = (tmp_path / "output.txt").read_text()
        assert "Traceback" not in output, output[-2000:]
        assert all_loadable(disk), "the checkpoints of before are gone"
    finally:
        subprocess.run(["umount", str(disk)], check=False)


# ---- damaged files


def good_files(folder):
    """One small file of each kind that the package reads."""
    noise = np.random.default_rng(0)
    x, y = noise.integers(0, 255, (24, 1, 8, 8), dtype=np.uint8), np.arange(24) % 3
    np.savez(folder / "arrays.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, folder / "tensors.safetensors")
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, folder / "tensors.pt")
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "label"), *((i, i * 0.5, "ab"[i % 2]) for i in range(20))])
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"a text of number {i}", "label": "xy"[i % 2]}) + "\n" for i in range(20))
    )
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for label in "ab":
            for number in range(3):
                picture = io.BytesIO()
                Image.fromarray(noise.integers(0, 255, (8, 8), dtype=np.uint8)).save(picture, "png")
                archive.writestr(f"{label}/{number}.png", picture.getvalue())
    return sorted(folder.iterdir())


def damaged(content, noise):
    """The bytes with one kind of damage."""
    content = bytearray(content)
    kind = noise.integers(5)
    place = int(noise.integers(len(content)))
    if kind == 0:
        return bytes(content[:place])
    if kind == 1:
        content[place : place + 16] = noise.bytes(16)
    elif kind == 2:
        content[place] ^= 1 << int(noise.integers(8))
    elif kind == 3:
        content[place:place] = noise.bytes(64)
    else:
        content[place : place + 256] = bytes(256)
    return bytes(content)


def one_line(error):
    """1 for an error whose message is one line."""
    assert "\n" not in str(error)
    return 1


def read_whole(path):
    """Opens a file as a collection and reads its samples."""
    for source in open_path(path).parts().values():
        source.fingerprint()
        if not isinstance(source, TextSource):  # these wait for a tokenizer
            source.read(torch.arange(min(4, len(source))), torch.device("cpu"))


def test_damaged_data_never_ends_in_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    noise, counts = np.random.default_rng(1), {"read": 0, "refused": 0}
    for path in good_files(tmp_path / "good"):
        if path.name != "y.npy":
            read_whole(path)
        for number in range(40):
            bad = tmp_path / "bad" / f"{number}{path.name}"
            bad.write_bytes(damaged(path.read_bytes(), noise))
            try:
                read_whole(bad)
                counts["read"] += 1
            except UserError as error:
                counts["refused"] += one_line(error)
            bad.unlink()
    print(f"damaged data: {counts}")
    assert counts["refused"] > 100


def test_damaged_checkpoints_never_end_in_a_traceback(tmp_path, cli):
    run = cli("fit", CONFIG, *tiny(CONFIG))
    content = (run / "checkpoints" / "last.ckpt").read_bytes()
    noise, counts = np.random.default_rng(2), {"read": 0, "refused": 0}
    for _ in range(60):
        (tmp_path / "bad.ckpt").write_bytes(damaged(content, noise))
        for read in (
            lambda: ProtoNetModule.load_from_checkpoint(tmp_path / "bad.ckpt"),
            lambda: load_weights(Conv4(hidden_channels=8), tmp_path / "bad.ckpt"),
        ):
            try:
                read()
                counts["read"] += 1
            except UserError as error:
                counts["refused"] += one_line(error)
    print(f"damaged checkpoints: {counts}")
    assert counts["refused"] > 20


# ---- malicious files


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


def test_no_file_runs_code(tmp_path, cli, capsys, monkeypatch):
    monkeypatch.setenv("METATRANSFER_CACHE", str(tmp_path / "cache"))
    mark, outside = tmp_path / "code was run", tmp_path / "outside.png"
    run = cli("fit", CONFIG, *tiny(CONFIG))
    good = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    attacks = []

    def bad(name, write):
        write(tmp_path / name)
        attacks.append(tmp_path / name)

    call = {"class_path": "os.system", "init_args": {"command": f"touch '{mark}'"}}
    for key in ("optimizer", "lr_scheduler", "backbone", "head"):
        changed = {**good, "hyper_parameters": {**good["hyper_parameters"], key: call}}
        bad(f"{key}.ckpt", lambda path, changed=changed: torch.save(changed, path))
    bad("object.ckpt", lambda path: torch.save({**good, "extra": Touch(mark)}, path))
    bad("object.pt", lambda path: torch.save(Touch(mark), path))
    bad("object.npy", lambda path: np.save(path, np.array([Touch(mark)], dtype=object), allow_pickle=True))
    bad("object.npz", lambda path: np.savez(path, x=np.array([Touch(mark)], dtype=object), y=np.zeros(1)))
    bad("plain.pth", lambda path: path.write_bytes(pickle.dumps(Touch(mark))))
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "png")

    def archive(path):
        with zipfile.ZipFile(path, "w") as file:
            for name in ("a/1.png", "b/1.png", "../outside.png", str(outside)):
                file.writestr(name, picture.getvalue())

    bad("outside.zip", archive)
    for path in attacks:
        for read in (ProtoNetModule.load_from_checkpoint, lambda p: load_weights(Conv4(), p), read_whole):
            try:
                read(path)
            except UserError as error:
                one_line(error)
    for name, value in {"optimizer": call, "backbone": call}.items():
        text = f"model:\n  class_path: ProtoNetModule\n  init_args:\n    {name}: {json.dumps(value)}\n"
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "--config", str(CONFIG), "--config", str(tmp_path / "config.yaml")])
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err
    assert not mark.exists()
    assert not outside.exists()
    assert not (tmp_path.parent / "outside.png").exists()
    print(f"{len(attacks) + 2} malicious files: no code was run")


def test_memory_stays_small():
    """All of this file in one process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")
    assert peak < 2.6
