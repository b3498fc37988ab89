"""A new medium takes one short collection: recordings, served in every way and learned from."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from metatransfer import (
    Collection,
    Conv4,
    Episodes,
    EpisodicDataModule,
    EvalTask,
    FineTuneModule,
    LabelledDataModule,
    ProtoNetModule,
    Task,
    TensorSource,
    UserError,
)

RATE, SAMPLES, SIDE = 4000, 1024, 16


class Recordings(Collection):
    """WAV files in folders ``<class>/<file>.wav``, as log-spectrograms."""

    def __init__(self, root):
        self.root = root

    def parts(self):
        folders = sorted(path for path in Path(self.root).iterdir() if path.is_dir())
        files = [(label, path) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.wav"))]
        x = torch.stack([self.convert(path) for _, path in files])
        return {"all": TensorSource(x, [label for label, _ in files], [one.name for one in folders], str(self.root))}

    def unlabelled(self, path):
        files = sorted(Path(path).rglob("*.wav"))
        x = torch.stack([self.convert(file) for file in files])
        return TensorSource(x, [0] * len(files), ["unlabelled"], path), tuple(file.name for file in files)

    def convert(self, item):
        try:
            with wave.open(str(item)) as file:
                sound = np.frombuffer(file.readframes(SAMPLES), np.int16)
        except wave.Error as error:
            raise UserError(f"'{item}' is not a WAV file ({error}): remove it.") from error
        wave_form = torch.from_numpy(sound.astype(np.float32) / 2**15)
        window = torch.hann_window(2 * SIDE)
        spectrum = torch.stft(wave_form, 2 * SIDE, SAMPLES // SIDE, window=window, return_complex=True)
        return spectrum.abs().clamp_min(1e-3).log()[None, :SIDE, :SIDE]


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Twelve pitches, with noise and random loudness, twenty recordings each."""
    root, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    time = np.arange(SAMPLES) / RATE
    for pitch in range(12):
        (root / f"pitch{pitch:02d}").mkdir()
        for number in range(20):
            frequency = (pitch + 1.5 + rng.uniform(-0.3, 0.3)) * RATE / (2 * SIDE)
            sound = rng.uniform(0.2, 0.8) * np.sin(2 * np.pi * frequency * time + rng.uniform(0, 6))
            sound += 0.1 * rng.standard_normal(SAMPLES)
            with wave.open(str(root / f"pitch{pitch:02d}" / f"{number}.wav"), "wb") as file:
                file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
                file.writeframes((sound.clip(-1, 1) * (2**15 - 1)).astype("<i2").tobytes())
    return root


def episodes(root):
    return EpisodicDataModule(Recordings(root), Task(3, 1, 5), EvalTask(), Episodes(160, 8, 60, 8))


def batches(root, **options):
    return LabelledDataModule(Recordings(root), batch_size=16, **options)


def fit_and_test(model, data, folder, epochs):
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer.test(model, data, verbose=False)[0]["test/accuracy"]


def test_served_as_episodes_and_as_batches(tones):
    data = episodes(tones)
    assert data.info().sample_shape == (1, SIDE, SIDE)
    assert data.episode("test", 0).query_x.shape == (1, 15, 1, SIDE, SIDE)
    data = batches(tones, predict=str(tones / "pitch03"))
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (16, 1, SIDE, SIDE)
    assert data.info().class_names[:2] == ("pitch00", "pitch01")
    assert sum(len(batch.files) for batch in data.predict_dataloader()) == 20


def test_a_bad_file_is_named(tones, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    with pytest.raises(UserError, match=r"bad\.wav' is not a WAV file"):
        batches(tones, predict=str(tmp_path)).setup("predict")


def test_new_pitches_are_learned_from_one_example(tones, tmp_path):
    assert fit_and_test(ProtoNetModule(Conv4(1, SIDE, 16)), episodes(tones), tmp_path, 2) > 0.8  # chance: 0.33


def test_pitches_are_learned_by_fine_tuning(tones, tmp_path):
    assert fit_and_test(FineTuneModule(Conv4(1, SIDE, 16), 12), batches(tones), tmp_path, 12) > 0.6  # chance: 0.08
