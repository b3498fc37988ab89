"""Compares methods on the same data, seeds and budget.

Every entry is trained for each seed and tested on the same samples as all others. Differences are paired, with
intervals over seeds and test samples, and corrected for the number of comparisons. Existing runs are not repeated.
"""

from jsonargparse import ArgumentParser, Namespace

from metatransfer.checks import check_count

NESTED = ("data", "trainer", "executor", "tune")
MAIN = {"executor": "name", "tune": "trials"}


def arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--config", action="config", help="YAML file of these arguments")
    parser.add_argument(
        "--data", type=dict, required=True,
        help="the data and their options, as for fit: --data.source PATH or NAME; or --data.sources.NAME and "
        "--data.targets.NAME",
    )  # fmt: skip
    parser.add_argument(
        "--methods", type=str, nargs="+", required=True,
        help='names of configurations or YAML files; in quotes with arguments: "maml --model.inner.steps 5"',
    )  # fmt: skip
    parser.add_argument("--budget", type=str, default="5m", help="budget of each training: 10m, 90s or 500steps")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, in processes of this machine")
    parser.add_argument(
        "--tune", type=int | dict | None,
        help="number of trials of a hyper-parameter search for each entry; to set the search space: --tune.space FILE",
    )  # fmt: skip
    parser.add_argument(
        "--executor", type=str | dict, default="local",
        help="where runs are executed: local, ray or slurm; with options: --executor slurm --executor.partition gpu",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=str, default="lightning_logs", help="folder in which the comparison creates its own folder"
    )
    parser.add_argument("--trainer", type=dict, default={}, help="options of the Trainer for all runs")


def run(settings: Namespace) -> None:
    """Runs the comparison."""
    from metatransfer.cli.comparing import compare

    check_count(seeds=settings.seeds, jobs=settings.jobs)
    compare(settings)
