"""SGS in pretraining and in fine-tuning: the four entries of the SGS paper's Tables 7 and 8, on generated scenes.

The scenes are written in the formats of Cityscapes and MPII, and read from there. The models, and the data set of
pretraining, are one's own, named by their import paths. With `--full`, six runs for each task take nine minutes of
one CPU core; without, seconds. With `--camvid FOLDER` the four entries of segmentation are trained on CamVid instead,
and evaluated on its validation images.
"""

import argparse
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

from generated_scenes.city import patches, write_city
from generated_scenes.models import small_classifier, small_heatmaps, small_pspnet
from generated_scenes.people import write_people
from rich.console import Console

from backpass.errors import BackpassWarning
from backpass.experiments import finetuning_study, result_table, run_study
from backpass.training import (
    Augmentation,
    DataSettings,
    OptimizerSettings,
    Recipe,
    Runtime,
    ScheduleSettings,
    SgsSettings,
    import_path,
)

PRETRAINING = Recipe(
    model=import_path(small_classifier),
    data=DataSettings(name=import_path(patches)),
    epochs=4,
    batch_size=38,
    optimizer=OptimizerSettings(lr=0.1, weight_decay=1e-4),
    augmentation=Augmentation(crop_padding=4, cutout=0),
    sgs=SgsSettings(warmup=0, every=2),
)
SEGMENTATION = Recipe(
    task="segmentation",
    task_args=(
        ("crop_height", 65),
        ("crop_width", 65),
        ("min_scale", 0.9),
        ("max_scale", 1.2),
        ("evaluation_images", 8),
    ),
    model=import_path(small_pspnet),
    epochs=30,
    batch_size=8,
    optimizer=OptimizerSettings(lr=0.05, lr_factors=(("backbone.*", 0.4),), weight_decay=1e-4),
    schedule=ScheduleSettings(name="poly"),
    sgs=SgsSettings(warmup=0, every=5),
)
CAMVID = replace(
    SEGMENTATION,
    task_args=(
        ("crop_height", 129),
        ("crop_width", 177),
        ("min_scale", 0.5),
        ("max_scale", 1.0),
        ("windows", False),
        ("flip", False),
        ("evaluation_images", 8),
    ),
    epochs=4,
)
POSE = Recipe(
    task="keypoints",
    task_args=(
        *(("size", 64), ("sigma", 1.0), ("rounding", "nearest"), ("quarter_pixel", True)),
        *(("rotation", 10.0), ("scale", 0.1)),
    ),
    model=import_path(small_heatmaps),
    epochs=40,
    batch_size=16,
    optimizer=OptimizerSettings(name="adam", lr=4e-3, weight_decay=0.0),
    schedule=ScheduleSettings(name="step", milestones=(30.0, 36.0)),
    sgs=SgsSettings(warmup=0, every=5, apply="update"),
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--full", action="store_true", help="train to a high mIoU and PCKh")
parser.add_argument("--out", type=Path, help="folder of scenes and runs; default: a temporary one")
parser.add_argument("--camvid", type=Path, help="folder of CamVid, with train, trainannot, val and valannot")
options = parser.parse_args()


def generated(out: Path) -> dict[str, Recipe]:
    write_city(out / "city", *((64, 16) if options.full else (8, 2)))
    write_people(out / "people", *((256, 64) if options.full else (16, 4)))
    return {
        "small PSPNet": replace(SEGMENTATION, data=DataSettings(name=f"cityscapes:{out / 'city'}", label="scenes")),
        "small heat maps": replace(POSE, data=DataSettings(name=f"mpii:{out / 'people'}", label="persons")),
    }


def of_length(recipe: Recipe) -> Recipe:
    return recipe if options.full else replace(recipe, epochs=2, schedule=replace(recipe.schedule, milestones=()))


with tempfile.TemporaryDirectory() as temporary:
    out = options.out or Path(temporary)
    if options.camvid:
        camvid = DataSettings(name=f"camvid:{options.camvid}", args=(("test", "val"),))
        studies = {"small PSPNet on CamVid": replace(CAMVID, data=camvid)}
    else:
        studies = generated(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BackpassWarning)  # names the new heads, and the old classifier
        for label, recipe in studies.items():
            study = finetuning_study(label, of_length(PRETRAINING), of_length(recipe), seeds=[0])
            result = run_study(study, out / label.replace(" ", "-"), runtime=Runtime(device="cpu", workers=0))
            result.check()
            Console(width=150).print(result_table(result.study, result.records).rich())
