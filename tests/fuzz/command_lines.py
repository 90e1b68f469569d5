"""Random command lines: options with values that are usual, at the edge of what is allowed, or hostile."""

import random
from pathlib import Path

from backpass.models import list_models
from backpass.training.methods import list_methods

TEXTS = [
    "", " ", "-", "--", "x", "é", "日本", "\udcff", "a\0b", "a\nb", "x" * 300, "x" * 5000, "[bold]x[/bold]", "[/nope]",
    "$x_{$", "%s", "{", "{}", "None", "True", "nan", "../../x", "~", "a/b", "=1+1", "<b>", "\x1b[31m", "\\", "'", '"',
]  # fmt: skip
INTEGERS = [
    "0", "1", "2", "3", "-1", "16", "33", "1000000", "4294967295", "4294967296", "9" * 19, "1" + "0" * 30, "1" * 5000,
    "1.5", "1e3", "nan", "x", "", "0x10", "None",
]  # fmt: skip
FLOATS = [
    "0", "1", "-1", "0.5", "0.9", "1.5", "1e-300", "1e300", "1e400", "nan", "inf", "-inf", "5e-324", "x", "", "None",
    "1" + "0" * 400,
]  # fmt: skip
MODELS = ["digits_net", "digits_net", "vgg11_small", "vgg11_bn", "resnet20", "timm/test_resnet", "timm/resnet10t"]
NO_MODELS = ["timm/", "timm/:", "timm/foo:bar", "timm/local-dir:nope", "timm/nope", "resnet", "timm/test_vit"]
PRECISIONS = ["no", "bf16", "fp16", "x"]

SETTINGS: dict[str, list[str]] = {
    "model": [*MODELS, *NO_MODELS, *TEXTS],
    "model-args": ["zero_init_last", "act relu", "rate nan", "num_classes 3", "width 2 width 3", "x", "in_channels 1"],
    "data.name": ["digits", "digits:x", "cifar10", "imagenet", "folder", "folder:{folder}", "folder:{file}", *TEXTS],
    "data.args": ["ids train", "ids", "ids raw ids train", "x 1"],
    "task": ["classification", "segmentation", "keypoints", "nowhere:Task", "os:nothing", *TEXTS],
    "task-args": ["any_weight 2", "label_smoothing 0.1", "flip", "x nan"],
    "weights.source": ["{folder}", "{file}", "timm/nope", "study:x", *TEXTS],
    "weights.module": ["conv1", "backbone", *TEXTS],
    "data.root": ["{folder}", "{file}", *TEXTS],
    "data.validation": FLOATS,
    "data.limit-train": INTEGERS,
    "data.limit-test": INTEGERS,
    "data.label": TEXTS,
    "data.image-size": INTEGERS,
    "epochs": INTEGERS,
    "batch-size": INTEGERS,
    "micro-batches": INTEGERS,
    "optimizer.name": ["sgd", "adam", "adamw", "adagrad", "lion"],
    "optimizer.lr": FLOATS,
    "optimizer.momentum": FLOATS,
    "optimizer.nesterov": [""],
    "optimizer.weight-decay": FLOATS,
    "schedule.name": ["cosine", "step", "poly", "linear"],
    "schedule.final-lr": FLOATS,
    "schedule.warmup-epochs": FLOATS,
    "schedule.cooldown-epochs": FLOATS,
    "schedule.step-epochs": FLOATS,
    "schedule.step-factor": FLOATS,
    "augmentation.crop-padding": INTEGERS,
    "augmentation.cutout": INTEGERS,
    "stream-augmentation.min-scale": FLOATS,
    "stream-augmentation.color-jitter": FLOATS,
    "label-smoothing": FLOATS,
    "clip-norm": FLOATS,
    "sgs.k": FLOATS,
    "sgs.every": INTEGERS,
    "sgs.warmup": INTEGERS,
    "sgs.batches": INTEGERS,
    "sgs.alpha": FLOATS,
    "sgs.beta": FLOATS,
    "sgs.branches": ["3x3", "3x3 1x1", "0x0", "x", "3x3x3", "1000000x1", "-1x3"],
    "pgt.alpha": FLOATS,
    "agc.clip-factor": FLOATS,
    "agc.eps": FLOATS,
    "agc.head": ["auto", "fc", "None", *TEXTS],
    "reparam.acb-gamma": FLOATS,
    "dyrep.every": INTEGERS,
    "dyrep.until": INTEGERS,
    "dyrep.metric": ["synflow", "snip", "x"],
    "dyrep.recalibration-batches": INTEGERS,
    "runtime.device": ["cpu", "cuda", "tpu"],
    "runtime.precision": PRECISIONS,
    "runtime.workers": ["0", "0", "-1", "1" + "0" * 30, "x"],
    "runtime.checkpoint-every": INTEGERS,
    "runtime.evaluate-every": INTEGERS,
    "recipe": ["digits", "cifar-200", "imagenet-120", "nope", *TEXTS],
}
METHODS = [*list_methods(), "sgs+dyrep", "acb+dbb", "sgs+sgs", "nope", "+", "plain+sgs", *TEXTS]
OUT = ["{new}", "{file}", "{file}/x", "/dev/null/x", "/proc/nope/x", "{new}/" + "x" * 300, "{folder}", *TEXTS[7:]]
PICTURES = ["{new}.png", "{new}.svg", "{new}.pdf", "{new}.bmp", "{file}.svg/x.svg", "/dev/null/x.svg", *OUT]
STORAGES = [
    "journal:{new}", "journal:{folder}", "journal:{file}", "journal:", "journal:/proc/x", "sqlite://", "sqlite:///",
    "sqlite:///{new}", "sqlite:///{folder}", "sqlite:///{file}", "sqlite:///{new}?mode=ro", "postgresql://127.0.0.1:1/x",
    "postgresql://[::", "postgresql://:x@/y?host=/nope", "postgresql+nope://x", "mysql://x", "http://x", "redis://x",
    "nope://x", "://", "{file}", "{folder}", "{folder}/nope", "sqlite:///{new}?x=y", *TEXTS,
]  # fmt: skip
STUDY: dict[str, list[str]] = {
    "out": OUT,
    "storage": STORAGES,
    "processes": ["1", "0", "-1", "2", "1" + "0" * 30, "x"],
    "dry-run": [""],
    "json": [""],
}
COMMANDS: dict[str, dict[str, list[str]]] = {
    "train": {"method": METHODS, "seed": INTEGERS, "out": OUT, "json": [""]},
    "compare": STUDY | {"methods": METHODS, "seeds": INTEGERS, "tune": ["lr=1,2", "lr=1", "k=0,1", "=", *TEXTS]},
    "search": STUDY | {"values": [*FLOATS, "1,2", ","], "method": METHODS, "seeds": INTEGERS, "validation": FLOATS},
    "reproduce": STUDY | {"seeds": ["1", "0", "-1", "x"], "entries": ["*", "VGG*", "[", *TEXTS], "epochs": INTEGERS},
    "worker": {"study": STORAGES, "name": TEXTS, "out": OUT, "heartbeat": FLOATS, "grace": FLOATS, "json": [""]},
    "report": {"json": [""]},
    "figure": {"output": PICTURES, "layers": ["conv1", *TEXTS]},
    "inspect": {
        "images": ["{folder}", "{file}", "{new}", *TEXTS],
        "weights": ["{folder}", "{file}", "timm/nope", *TEXTS],
        "shape": ["3 32 32", "1 8 8", "3", "0 0 0", "3 1 1", "3 -1 4", "1" + "0" * 30 + " 4 4", "x"],
        "count": INTEGERS,
        "batch-size": INTEGERS,
        "k": FLOATS,
        "measure": ["mutual_information", "autocorrelation", "x"],
        "output": PICTURES,
        "json": [""],
    },
    "power": {"spread": FLOATS, "difference": FLOATS, "seeds": INTEGERS, "level": FLOATS, "correlation": FLOATS},
    "list": {"json": [""]},
}
POSITIONAL = {
    "search": ["sgs.k", "pgt.alpha", "sgs.alpha,sgs.beta", "optimizer.lr", "epochs", "data", "sgs.q", ".", ",", *TEXTS],
    "reproduce": ["sgs-table-4", "norm-free", "pgt", "nope", *TEXTS],
    "report": ["{folder}", "{file}", "{new}", *TEXTS],
    "figure": ["family", "family {folder}", "scalings {folder}", "k-curve {file}", "curves", "nope {new}", *TEXTS],
    "inspect": [*MODELS, "resnet20", "timm/nope", "nope", "os:getcwd", "os:nothing", "{folder}", "{file}", *TEXTS],
}
# What keeps a line that is otherwise right short.
SMALL = ["--epochs", "1", "--data.limit-train", "32", "--data.limit-test", "10", "--runtime.device", "cpu"]
SHORT = {
    "train": [],
    "compare": ["--methods", "plain", "--seeds", "0"],
    "search": ["--values", "2", "--seeds", "0"],
    "inspect": ["--count", "4", "--batch-size", "2", "--shape", "3", "32", "32"],
}


def command_line(generator: random.Random, folder: Path, file: Path, new: Path) -> list[str]:
    """Return the arguments of one command.

    Args:
        generator: draws them.
        folder: of images, which exists.
        file: a text, which exists.
        new: names nothing yet.
    """
    command = generator.choice([*COMMANDS, "train", "compare", "search", "reproduce"])
    words = [command]
    if command in POSITIONAL:
        words += generator.choice(POSITIONAL[command]).split(" ")
    options = dict(COMMANDS[command])
    words += SHORT.get(command, [])
    if command in ("train", "compare", "search"):
        options |= SETTINGS
        words += SMALL
    if command == "reproduce":
        words.append("--dry-run")
    for option in generator.sample(list(options), min(len(options), generator.choice([1, 1, 2, 2, 3]))):
        value = generator.choice(options[option])
        several = option in ("model-args", "sgs.branches", "shape")
        words += [f"--{option}", *(value.split(" ") if several else [value])]
        if value == "" and generator.random() < 0.8:
            words.pop()
    if generator.random() < 0.02:
        words.insert(generator.randrange(len(words)), generator.choice([*TEXTS, *list_models()]))
    names = {"{folder}": str(folder), "{file}": str(file), "{new}": str(new)}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    return words
