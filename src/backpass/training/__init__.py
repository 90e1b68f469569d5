"""Training: data, tasks, methods as the loop knows them, the trainer and its checkpoints (extra ``lab``).

>>> from backpass.training import DataSettings, Recipe, Run, Runtime, Trainer, load_dataset
>>> recipe = Recipe(model="digits_net", epochs=2, batch_size=32, augmentation=Augmentation(crop_padding=1, cutout=0))
>>> trainer = Trainer(Run(recipe, "sgs+pgt", seed=0), load_dataset("digits", limit_train=64), runtime=Runtime("cpu"))
>>> outcome = trainer.fit()
>>> sorted(outcome.history[0])[:3]
['epoch', 'evaluate_seconds', 'lr']
"""

from backpass._internal.imports import import_path
from backpass.errors import naming_extra

with naming_extra("lab", "training"):
    from backpass.training.augment import Augmentation
    from backpass.training.checkpoint import load_checkpoint, save_checkpoint
    from backpass.training.classification import Classification
    from backpass.training.datasets import list_datasets, load_dataset
    from backpass.training.dense.keypoints import KeypointHeatmaps
    from backpass.training.dense.segmentation import SemanticSegmentation
    from backpass.training.images import FileSplit, ImageData, ImageSplit
    from backpass.training.items import ItemData
    from backpass.training.method import Context, Method
    from backpass.training.methods import METHODS, list_methods
    from backpass.training.outcome import Outcome
    from backpass.training.recipe import (
        AgcSettings,
        DataSettings,
        DyRepSettings,
        OptimizerSettings,
        PgtSettings,
        Recipe,
        ReparamSettings,
        Run,
        Runtime,
        ScheduleSettings,
        SgsSettings,
        WeightSettings,
    )
    from backpass.training.stream import StreamAugmentation
    from backpass.training.task import Criterion, Evaluation, Task
    from backpass.training.tasks import TASKS, list_tasks
    from backpass.training.trainer import Trainer

__all__ = [
    "METHODS",
    "TASKS",
    "AgcSettings",
    "Augmentation",
    "Classification",
    "Context",
    "Criterion",
    "DataSettings",
    "DyRepSettings",
    "Evaluation",
    "FileSplit",
    "ImageData",
    "ImageSplit",
    "ItemData",
    "KeypointHeatmaps",
    "Method",
    "OptimizerSettings",
    "Outcome",
    "PgtSettings",
    "Recipe",
    "ReparamSettings",
    "Run",
    "Runtime",
    "ScheduleSettings",
    "SemanticSegmentation",
    "SgsSettings",
    "StreamAugmentation",
    "Task",
    "Trainer",
    "WeightSettings",
    "import_path",
    "list_datasets",
    "list_methods",
    "list_tasks",
    "load_checkpoint",
    "load_dataset",
    "save_checkpoint",
]
