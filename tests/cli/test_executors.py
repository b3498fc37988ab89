"""Where runs take place: in processes, on Ray, on SLURM; with real ones on this machine."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from test_compare import SMALL, compared

import messages
from metatransfer.cli import main
from metatransfer.cli.executors import executor_of
from metatransfer.cli.executors.base import Killed, call_in
from metatransfer.cli.executors.local import Local
from metatransfer.errors import UserError

# for eval in another process: a result and the folder, an error, a process that is killed
WORK = ["(6 * 7, open('here.txt').read())", "1 / 0", "__import__('os')._exit(9)"]


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The current folder, which all nodes see."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("the shared folder")
    return tmp_path


@pytest.fixture(scope="module")
def ray_here():
    """A Ray on this machine, with one CPU."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # writes no token into the home folder
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture
def slurm_here(monkeypatch):
    """SLURM, for which submitit's executor of this machine stands."""
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr("metatransfer.cli.executors.slurm.Slurm.cluster", "local")
    monkeypatch.setattr("metatransfer.cli.executors.slurm.Slurm.pause", 0.1)
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 1)
    return submitit


def check(executor):
    """Runs :data:`WORK`; returns the sentence about the killed process."""
    found = dict(executor.each(eval, WORK))
    assert found[0] == (42, "the shared folder")
    assert isinstance(found[1], Killed)
    assert isinstance(found[2], Killed)
    return str(found[2])


@pytest.mark.slow  # a cluster takes seconds to start, and so do its processes
def test_ray(shared, ray_here):
    assert "Ray lost its process" in check(executor_of("ray", 1, shared))
    assert list(executor_of({"name": "ray", "num_cpus": 1}, 1, shared).each(eval, ["2"])) == [(0, 2)]


@pytest.mark.slow  # each job is a new process
def test_slurm(shared, slurm_here):
    assert "slurm/" in check(executor_of({"name": "slurm", "partition": "gpu"}, 1, shared))
    assert list((shared / "slurm").glob("*_log.err"))


@pytest.mark.slow  # a killed process takes the pool with it, so that both are new ones
def test_processes(shared):
    executor = Local(2)
    assert sorted(executor.each(eval, ["6 * 7", "open('here.txt').read()"])) == [(0, 42), (1, "the shared folder")]
    killed = dict(executor.each(eval, [WORK[2]] * 2))
    assert len(killed) == 2
    assert all("fewer --jobs" in str(one) for one in killed.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_runs_of_a_cluster_are_those_of_this_machine(name, shared, request):
    request.getfixturevalue(f"{name}_here")
    command = ["compare", *SMALL, "--methods", "protonet --model.backbone.hidden_channels 4"]
    if name == "ray" and importlib.util.find_spec("optuna"):
        command += ["--tune", "2"]
    main([*command, "--executor", name])
    first = compared(shared)
    assert (first["failures"], first["seconds"]["new_runs"]) == ({}, 3)
    main(command)  # finds them on the disk
    second = compared(shared)
    assert (second["entries"], second["seconds"]["new_runs"]) == (first["entries"], 0)
    assert second.get("tuning") == first.get("tuning")


def test_a_node_without_the_folder_says_so(shared):
    assert call_in(str(shared), eval, "open('here.txt').read()") == "the shared folder"
    assert str(shared) in sys.path  # classes of the user's own files
    missing = call_in(str(shared / "elsewhere"), eval, "1")
    assert isinstance(missing, Killed)
    assert "a folder that all nodes share" in str(missing)


# ---- mistakes


@pytest.mark.parametrize(
    ("given", "jobs", "words"),
    [
        ("slurmm", 1, "Did you mean slurm?"),
        ({"partition": "gpu"}, 1, "executor local has no option 'partition'"),
        ("ray", 2, "leave out --jobs"),
    ],
)
def test_mistakes(given, jobs, words, tmp_path):
    with pytest.raises(UserError) as error:
        executor_of(given, jobs, tmp_path)
    assert words in messages.keep(str(error.value))


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        executor_of(name, 1, tmp_path)
    assert f"metatransfer[{name}]" in messages.keep(str(error.value))


def test_slurm_is_not_everywhere(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError) as error:
        executor_of("slurm", 1, tmp_path)
    assert "login node" in messages.keep(str(error.value))


def test_options_that_a_cluster_does_not_have(tmp_path, slurm_here):
    for wrong in ({"partitoin": "gpu"}, {"timeout_min": "soon"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            executor_of({"name": "slurm", **wrong}, 1, tmp_path)


def test_options_that_ray_does_not_have(tmp_path):
    pytest.importorskip("ray")
    for wrong in ({"num_cpu": 1}, {"num_cpus": "two"}):
        with pytest.raises(UserError, match="does not accept its options") as error:
            executor_of({"name": "ray", **wrong}, 1, tmp_path)
        assert next(iter(wrong)) in str(error.value)
