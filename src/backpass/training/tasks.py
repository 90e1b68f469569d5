"""The tasks by name, and the task of a recipe."""

from backpass._internal.imports import import_object, is_import_path
from backpass.errors import InputError
from backpass.training.classification import Classification
from backpass.training.dense.keypoints import KeypointHeatmaps
from backpass.training.dense.segmentation import SemanticSegmentation
from backpass.training.items import Data
from backpass.training.recipe import Recipe
from backpass.training.task import Task

__all__ = ["TASKS", "build_task", "list_tasks"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": SemanticSegmentation,
    "keypoints": KeypointHeatmaps,
}


def list_tasks() -> list[str]:
    """Return the names of the tasks; a recipe may name any other by its import path.

    >>> list_tasks()
    ['classification', 'segmentation', 'keypoints']
    """
    return list(TASKS)


def build_task(recipe: Recipe, data: Data) -> Task:
    """Return the task of a recipe on a data set.

    Raises:
        InputError: the recipe names no task, or the task does not take its arguments or fit the data.
    """
    if recipe.task in TASKS:
        return TASKS[recipe.task].build(recipe, data)
    if not is_import_path(recipe.task):
        raise InputError(
            f"expected one of the tasks {', '.join(TASKS)} or an import path package.module:Class, got "
            f"{recipe.task!r}; choose one"
        )
    found = import_object(recipe.task, "task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(
            f"expected task {recipe.task!r} to be a subclass of backpass.training.Task, got {found!r}; derive it"
        )
    return found.build(recipe, data)
