"""Data modules from flat options: tests vary one number at a time, wherever it is grouped."""

from metatransfer import (
    Collection,
    Division,
    DomainDataModule,
    DomainDivision,
    EpisodeFiles,
    Episodes,
    EpisodicDataModule,
    EvalTask,
    LabelledDataModule,
    PredictFolders,
    Processing,
    Task,
)

TASK = ("num_ways", "num_shots", "num_queries")
GROUPS = {
    **{name: ("task", name) for name in (*TASK, "shape", "within_groups")},
    **{f"eval_{name}": ("eval_task", name) for name in (*TASK, "shape")},
    **{f"{name}_episodes": ("episodes", name) for name in ("train", "val", "test")},
    **{name: ("processing", name) for name in ("augmentation", "transform", "rotations", "mix")},
    **{name: ("division", name) for name in ("val_fraction", "test_fraction", "transductive", "hold_out_source")},
    "per_batch": ("episodes", "per_batch"), "train_seed": ("episodes", "train_seed"),
    "division_seed": ("division", "seed"),
    "export": ("files", "export"), "use": ("files", "use"), "support": ("predict", "support"),
    "query": ("predict", "query"),
}  # fmt: skip
KINDS = {
    "task": Task, "eval_task": EvalTask, "episodes": Episodes, "processing": Processing, "division": Division,
    "files": EpisodeFiles, "predict": PredictFolders,
}  # fmt: skip


class Given(Collection):
    """Whatever parts it is given."""

    def __init__(self, parts, **attributes):
        self.given = parts
        vars(self).update(attributes)

    def parts(self):
        return self.given


def grouped(options, **kinds):
    groups, rest = {}, {}
    for name, value in options.items():
        if name in GROUPS:
            group, inner = GROUPS[name]
            groups.setdefault(group, {})[inner] = value
        else:
            rest[name] = value
    return rest | {group: ({**KINDS, **kinds})[group](**values) for group, values in groups.items()}


def episodic(source, **options):
    return EpisodicDataModule(source, **grouped(options))


def labelled(source, **options):
    return LabelledDataModule(source, **grouped(options))


def domains_of(sources, targets, **options):
    return DomainDataModule(sources, targets, **grouped(options, division=DomainDivision))
