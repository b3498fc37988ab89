"""Every validator says in one sentence what was expected, what came and what to do."""

import os
import re

import numpy as np
import pytest
import torch

import messages
from metatransfer import checks
from metatransfer.batches import Episode, LabelledBatch
from metatransfer.errors import UserError


def refusal(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert re.search(r"[^.?][.?]$", sentence), sentence
    return messages.keep(sentence)


def episode(tasks=2, support=6, query=4, shape=(3, 5), ways=3, **changes):
    values = {
        "support_x": torch.zeros(tasks, support, *shape),
        "support_y": torch.arange(support).remainder(ways).expand(tasks, support).clone(),
        "query_x": torch.zeros(tasks, query, *shape),
        "query_y": torch.arange(query).remainder(ways).expand(tasks, query).clone(),
    }
    return Episode(**{**values, **changes})


# ---- numbers and words


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("inf"), float("-inf")])
def test_check_positive_refuses(value):
    assert refusal(checks.check_positive, good=1, rate=value) == f"rate must be a number above 0, but is {value}."


def test_check_positive_passes():
    checks.check_positive(a=1, b=1e-9, c=None)
    checks.check_positive()


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf")])
def test_check_not_negative(value):
    checks.check_not_negative(a=0, b=1.5, c=None)
    assert refusal(checks.check_not_negative, a=0, b=value) == f"b must be 0 or more, but is {value}."


@pytest.mark.parametrize("value", [-1, 2**32, 10**30, 1.5])
def test_check_seed(value):
    checks.check_seed(seed=0, other=2**32 - 1)
    assert refusal(checks.check_seed, seed=value).startswith("seed must be a whole number from 0 to 4294967295, but is")


@pytest.mark.parametrize("value", [0, -1, 10**6 + 1, 10**18, 10**30, 1.5, float("nan"), "5", 1j])
def test_check_count(value):
    checks.check_count(a=1, b=10**6, c=None, d=np.int64(5))
    sentence = refusal(checks.check_count, a=1, b=value)
    assert sentence.startswith("b must be a whole number from 1 to 1000000, but is ")
    assert len(sentence) < 110


def test_check_count_of_another_range():
    checks.check_count(0, 3, a=0, b=3)
    assert refusal(checks.check_count, 0, 3, a=4) == "a must be a whole number from 0 to 3, but is 4."


def test_check_monitor():
    checks.check_monitor("x", "val/loss", ["val/loss"])
    sentence = refusal(checks.check_monitor, "checkpoint.monitor", "val/los", ["val/loss", "train/loss"])
    assert sentence == (
        "checkpoint.monitor 'val/los' is not logged by this run. Did you mean val/loss? Known: train/loss, val/loss."
    )
    assert "Known: none." in refusal(checks.check_monitor, "x", "val/los", [])


def test_check_choice():
    checks.check_choice("batching", "loop", ("loop", "vmap"))
    sentence = refusal(checks.check_choice, "batching", "vmpa", ("loop", "vmap"))
    assert sentence == "batching must be one of loop, vmap, but is 'vmpa'. Did you mean vmap?"
    assert refusal(checks.check_choice, "x", "zzz", ("loop", "vmap")) == "x must be one of loop, vmap, but is 'zzz'."
    assert "Did you mean loop?" in refusal(checks.check_choice, "x", "LOOP", ("loop", "vmap"))


@pytest.mark.parametrize("value", [None, 3, ["loop"]])
def test_check_choice_refuses_what_is_no_word(value):
    assert "must be one of loop, vmap" in refusal(checks.check_choice, "batching", value, ("loop", "vmap"))


@pytest.mark.parametrize(
    ("word", "known", "end"),
    [
        ("ProtoNt", ["ProtoNetModule", "ProtoNet"], ". Did you mean ProtoNet?"),
        ("protonet", ["ProtoNet"], ". Did you mean ProtoNet?"),
        ("qqqq", ["ProtoNet"], "."),
        ("x", [], "."),
        ("", ["a"], "."),
    ],
)
def test_did_you_mean(word, known, end):
    assert checks.did_you_mean(word, known) == end


# ---- episodes


def test_good_episodes_pass():
    checks.check_episode(episode())
    checks.check_episode(episode(), num_outputs=3)
    checks.check_episode(episode(), num_outputs=5)
    checks.check_episode(episode(shape=()))
    regression = episode(support_y=torch.zeros(2, 6, 2), query_y=torch.zeros(2, 4, 2))
    checks.check_episode(regression)
    checks.check_episode(regression, num_outputs=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {name: t[:0] for name, t in episode()._asdict().items() if t is not None},
            ["has no task: its leading axis must be 1 or more"],
        ),
        ({"support_y": torch.zeros(6).long()}, ["leading task axis", "(6,)", "(T, S, *shape)"]),
        ({"query_x": torch.zeros(1, 4, 3, 5)}, ["same number of tasks", "(1, 4, 3, 5)"]),
        ({"support_y": torch.zeros(2, 5).long()}, ["as many support labels as support samples", "(2, 5)"]),
        ({"query_y": torch.zeros(2, 9).long()}, ["as many query labels as query samples", "(2, 9)"]),
        ({"query_x": torch.zeros(2, 4, 3, 6)}, ["samples of one shape", "(2, 4, 3, 6)"]),
        ({"support_x": torch.zeros(2, 0, 3, 5), "support_y": torch.zeros(2, 0).long()}, ["no support samples"]),
        ({"query_x": torch.zeros(2, 0, 3, 5), "query_y": torch.zeros(2, 0).long()}, ["no query samples"]),
        ({"support_y": torch.full((2, 6), -1)}, ["-1"]),
        ({"query_y": torch.zeros(2, 4)}, ["query_y"]),  # labels to learn from, targets to answer with
        ({"support_y": torch.zeros(2, 6), "query_y": torch.zeros(2, 4)}, ["(2, 6)"]),  # targets need (T, S, D)
        ({"support_y": torch.zeros(2, 6, 1).long()}, ["(2, 6, 1)"]),
        ({"query_y": torch.zeros(2, 4, 1).long()}, ["(2, 4, 1)"]),
        ({"support_y": torch.zeros(2, 6, dtype=torch.bool)}, ["bool"]),
        ({"support_y": torch.zeros(2, 6, dtype=torch.int32)}, ["int32"]),
    ],
)
def test_bad_episodes(changes, words):
    sentence = refusal(checks.check_episode, episode(**changes), where="the train episode")
    assert sentence.startswith("the train episode")
    assert all(word in sentence for word in words), sentence


def test_labels_beyond_the_output_layer():
    sentence = refusal(checks.check_episode, episode(ways=3), num_outputs=2)
    for word in ("labels from 0 to 2", "num_outputs=2", "0 to 1", "set num_outputs to the number of ways"):
        assert word in sentence


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int32, torch.complex64])
def test_labels_of_another_type(kind):
    for name in ("support_y", "query_y"):
        wrong = episode(**{name: getattr(episode(), name).to(kind)})
        sentence = refusal(checks.check_episode, wrong)
        assert "needs int64 labels in support_y and query_y, or float targets in both" in sentence
        assert str(kind) in sentence
    y = torch.zeros(3).to(kind)
    assert f"int64 labels, but has {kind}" in refusal(
        checks.check_labelled_batch, LabelledBatch(torch.zeros(3, 2), y), 5
    )


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.complex64])
def test_samples_of_another_type(kind):
    for name in ("support_x", "query_x"):
        wrong = episode(**{name: getattr(episode(), name).to(kind)})
        assert f"the episode's {name} must be floating point" in refusal(checks.check_episode, wrong)
    for good in (torch.half, torch.bfloat16, torch.double):
        checks.check_episode(episode(support_x=episode().support_x.to(good)))
    x = torch.zeros(3, 2).to(kind)
    labels = torch.zeros(3, dtype=torch.int64)
    assert f"x must be floating point, images in [0, 1], but is {kind}" in refusal(
        checks.check_labelled_batch, LabelledBatch(x, labels), 5
    )


def test_query_labels_beyond_the_output_layer():
    """cross_entropy would answer with an IndexError, on a GPU with a device-side assert that kills the process."""
    wrong = episode(query_y=torch.full((2, 4), 7))
    assert "7" in refusal(checks.check_episode, wrong, num_outputs=3)


def test_negative_labels_without_a_fixed_output_layer_do_not_speak_of_one():
    sentence = refusal(checks.check_episode, episode(support_y=torch.full((2, 6), -1)))
    assert "num_outputs" not in sentence


def test_targets_of_another_size():
    regression = episode(support_y=torch.zeros(2, 6, 2), query_y=torch.zeros(2, 4, 2))
    sentence = refusal(checks.check_episode, regression, num_outputs=5)
    assert "targets of size 2" in sentence
    assert "num_outputs=5" in sentence


# ---- support sets and weights


@pytest.mark.parametrize(
    ("x", "labels", "words"),
    [
        (torch.zeros(0, 3), [], ["at least one sample", "(0, 3)"]),
        (torch.zeros(4), [0] * 4, ["(S, *shape)", "(4,)"]),
        (torch.zeros(4, 3), [0] * 3, ["4 samples", "3 labels"]),
        (torch.tensor([[float("nan")]]), [0], ["NaN or infinity"]),
        (torch.tensor([[float("inf")]]), [0], ["NaN or infinity"]),
        (torch.zeros(4, 3).long(), [0] * 4, ["int64: convert it, x.float()"]),
        (torch.zeros(4, 3).bool(), [0] * 4, ["bool: convert it, x.float()"]),
        (torch.zeros(4, 3).byte(), [0] * 4, ["uint8: divide images by 255"]),
        (torch.zeros(4, 3, dtype=torch.complex32), [0] * 4, ["complex32: give its two parts, torch.view_as_real(x)"]),
        (torch.tensor([[float("nan")]]).half(), [0], ["NaN or infinity"]),
    ],
)
def test_bad_support(x, labels, words):
    sentence = refusal(checks.check_support, x, labels)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([[0], [1]]), ["shape (S,), but has (2, 1)", "support_y[:, 0]"]),
        (np.array([["a"], ["b"]]), ["shape (S,), but has (2, 1)"]),
        (torch.eye(2).long(), ["(2, 2) is one-hot", "support_y.argmax(-1)"]),
        (torch.eye(2), ["is one-hot"]),
        (np.eye(2), ["is one-hot"]),
        (torch.tensor([[3, 4], [5, 6]]), ["has (2, 2): give one label for each sample"]),
        ([[1, 0], [0, 1]], ["not a list of 2", "class indices or names"]),
        (list(torch.eye(2)), ["not a Tensor of 2"]),
        (None, ["one label for each sample, but is None"]),
        (torch.zeros(2, dtype=torch.complex64), ["support_y is complex64", "convert it"]),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), ["support_y is datetime64[D]", "convert it"]),
        (np.array(["a", None], object), ["support_y contains None for sample 1", "leave the sample out"]),
        (np.array([0, float("nan")], object), ["support_y contains nan for sample 1"]),
        (np.array(["a", 1], object), ["support_y mixes int and str: give labels of one type"]),
        (np.array([["a"], ["b"]], object), ["has (2, 1)", "support_y[:, 0]"]),
        (np.array([{1: 2}, "b"], object), ["not a dict of 1"]),
        ([0, float("nan")], ["support_y contains nan for sample 1"]),
        ([0.5, float("inf")], ["support_y contains inf for sample 1"]),
        (["a", None], ["support_y contains None for sample 1"]),
        ([np.float32("nan"), 1], ["support_y contains nan for sample 0"]),
        ([torch.tensor(1.0), torch.tensor(float("nan"))], ["for sample 1"]),
        (torch.tensor([1.0, float("nan")]), ["support_y contains NaN or infinity for sample 1"]),
        (torch.tensor([[1.0, 2.0], [float("inf"), 0.0]]).bfloat16(), ["NaN or infinity for sample 1"]),
        (np.array([float("nan"), 1.0]), ["support_y contains NaN or infinity for sample 0"]),
        (torch.tensor([[True], [False]]), ["has (2, 1)", "support_y[:, 0]"]),
        (torch.tensor(1), ["one label for each sample"]),
    ],
)
def test_more_than_one_label_for_a_sample(labels, words):
    sentence = refusal(checks.check_support, torch.zeros(2, 3), labels)
    assert all(word in sentence for word in words), sentence


def test_targets_and_labels_of_all_kinds_pass():
    floats = torch.rand(2, 2), torch.rand(2, 1), np.random.rand(2, 2), torch.rand(2).half(), torch.rand(2, 1).bfloat16()
    classes = (
        torch.tensor([True, False]),
        torch.tensor([3, 5]).byte(),
        np.array([b"a", b"b"]),
        np.array(["a", "b"], "O"),
    )
    for labels in (*floats, *classes, [torch.tensor([1]), np.int64(3)], "ab"):
        checks.check_support(torch.zeros(2, 3), labels)
    checks.check_support(torch.zeros(2, 3), [("a", 1), ("b", 2)])


def test_good_support():
    checks.check_support(torch.zeros(2, 3), ["a", "b"])
    checks.check_support(torch.zeros(1, 1), torch.zeros(1))


def test_state_dicts():
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    checks.check_state_dict(own, {key: value + 1 for key, value in own.items()}, "Net")
    sentence = refusal(checks.check_state_dict, own, {"a": torch.zeros(5), "z": torch.zeros(1)}, "Net")
    for word in ("this Net", "2 missing (b, c)", "1 unknown (z)", "1 of another shape (a (5,) instead of (2,))"):
        assert word in sentence
    many = {f"k{i}": torch.zeros(1) for i in range(9)}
    assert "9 missing (k0, k1, k2, ...)" in refusal(checks.check_state_dict, many, {}, "Net")


# ---- files and folders


def test_check_file(tmp_path):
    file = tmp_path / "maml.yaml"
    file.write_text("x")
    assert checks.check_file(file, "config") == file
    assert checks.check_file(str(file), "config") == file
    sentence = refusal(checks.check_file, tmp_path / "mmal.yaml", "config")
    assert sentence == f"config '{tmp_path / 'mmal.yaml'}' does not exist. Did you mean maml.yaml?"
    assert refusal(checks.check_file, tmp_path / "no" / "way.yaml", "config").endswith(
        "does not exist: check the path."
    )
    assert "is a folder, but must be a file" in refusal(checks.check_file, tmp_path, "config")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_check_file_without_permission(tmp_path):
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(0)
    assert "cannot be read: check its permissions" in refusal(checks.check_file, file, "config")


def test_check_folder(tmp_path):
    folder = tmp_path / "support"
    folder.mkdir()
    (tmp_path / "file").write_text("x")
    assert checks.check_folder(folder, "support folder") == folder
    sentence = refusal(checks.check_folder, tmp_path / "suport", "support folder")
    assert sentence == f"support folder '{tmp_path / 'suport'}' does not exist. Did you mean support?"
    assert "is a file, but must be a folder" in refusal(checks.check_folder, tmp_path / "file", "support folder")


def test_check_writable(tmp_path):
    (tmp_path / "file").write_text("x")
    assert checks.check_writable(tmp_path / "a" / "b", "run folder") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    assert checks.check_writable(tmp_path, "run folder") == tmp_path
    sentence = refusal(checks.check_writable, tmp_path / "file" / "b", "run folder")
    assert "run folder" in sentence
    assert f"'{tmp_path / 'file'}' is a file" in sentence
    assert "cannot be written (file name too long)" in refusal(
        checks.check_writable, tmp_path / ("x" * 300), "run folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_check_writable_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    sentence = refusal(checks.check_writable, tmp_path / "a", "run folder")
    assert "cannot be written (permission denied): choose another folder" in sentence
    tmp_path.chmod(0o700)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a folder that nobody may write to, even root")
def test_check_writable_tries():
    assert os.path.isdir("/proc")
    for path in ("/proc", "/proc/runs", "/proc/runs/mine"):
        assert f"'{path}' cannot be written" in refusal(checks.check_writable, path, "run folder")


def test_check_writable_of_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(checks.check_writable("runs/new", "run folder")) == os.path.join("runs", "new")


def test_user_errors_are_value_errors():
    assert issubclass(UserError, ValueError)


def test_the_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pt").touch()
    assert checks.check_file("~/a.pt", "weights file") == tmp_path / "a.pt"
    assert checks.check_folder("~", "folder") == tmp_path
    assert checks.check_writable("~/new/run", "run folder") == tmp_path / "new" / "run"
    with pytest.raises(UserError, match=r"'.*b\.pt' does not exist"):
        checks.check_file("~/b.pt", "weights file")


@pytest.mark.parametrize("check", [checks.check_file, checks.check_folder, checks.check_writable])
def test_a_path_with_a_nul(check, tmp_path):
    with pytest.raises(UserError, match=r"does not exist|cannot be written \(it contains NUL\)"):
        check(f"{tmp_path}/a\0b", "run folder")
