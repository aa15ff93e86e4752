"""Files that a run names, found and not read yet: its model's folder with the config, and the sources of its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig

from lift_ds.config.run import RunConfig
from lift_ds.data.settings import SourceConfig
from lift_ds.data.sources import BUILTIN_PREFIX, Retry, SourceGroup, open_groups
from lift_ds.models.families import read_config
from lift_ds.models.weights import BUILTIN_BASE, check_fit, resolve_folder


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, and what its config says.

    Args:
        path: As `model.path` has it.
        folder: Where it is on this machine.
        config: The model's config.
    """

    path: str
    folder: Path
    config: PretrainedConfig

    def fetch_weights(self) -> ModelFolder:
        """The same with the weights, which only a hub name may lack; their names can tell the family, too.

        Raises:
            ValueError: They do not fit the config, cannot be read, or contradict each other.
        """
        is_local = self.path == BUILTIN_BASE or Path(self.path).is_dir()
        model = self if is_local else open_model(self.path)
        check_fit(model.config, model.folder)
        return model


def open_model(path: str, with_weights: bool = True) -> ModelFolder:
    """Resolves `model.path` and reads its config.

    Args:
        path: A folder, a hub name or `builtin:base`.
        with_weights: Fetch the weights of a hub name too.

    Raises:
        ValueError: There is no such model, or its config is of no known family.
    """
    folder = resolve_folder(path, with_weights)
    return ModelFolder(path, folder, read_config(folder))


class SourcesError(ValueError):
    """Everything that is wrong with what a run is to read, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        """Joins the problems into one message."""
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class RunSources:
    """The files of a run, listed; none of their rows is read.

    Args:
        training: In the config's order.
        held_out: What held-out rows are read from; `None` where they are training rows set apart.
    """

    training: list[SourceGroup]
    held_out: list[SourceGroup] | None


def list_sources(run: RunConfig) -> RunSources:
    """Finds the files that a run reads.

    Raises:
        SourcesError: Some are missing or empty, or their kind is not known; all of them at once.
        ConnectionError: A server did not answer.
    """
    problems: list[str] = []

    def open_group(source: SourceConfig, split: str, builtin_rows: int) -> SourceGroup:
        group = SourceGroup(", ".join(source.paths()), [])
        for path in source.paths():  # each alone: what is wrong with one says nothing of the others
            try:
                part = open_groups(
                    [source.model_copy(update={"path": path})], run.data.builtin_seed, split, builtin_rows, Retry()
                )[0]
            except ValueError as error:
                problems.append(str(error))
            else:
                group = replace(part, name=group.name, sources=[*group.sources, *part.sources])
        return group

    sources = run.data.source_list()
    training = [open_group(source, "train", run.data.builtin_rows) for source in sources]
    held_out = None
    if run.eval.path is not None:
        held_out = [open_group(SourceConfig(path=run.eval.path), "test", run.eval.rows)]
    elif run.eval.rows and not problems and all(is_builtin(source) for source in sources):
        held_out = [open_group(source, "test", run.eval.rows) for source in sources]
    if problems:
        raise SourcesError(problems)
    return RunSources(training, held_out)


def is_builtin(source: SourceConfig) -> bool:
    """Whether all rows are of built-in tasks, which have a test split."""
    return all(path.startswith(BUILTIN_PREFIX) for path in source.paths())
