"""The sections of the page of results: each function turns the content of one file into Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any

from backpass.experiments.reporting.tables import markdown_table as table
from paper import RELATIVE_TIME
from tools import spread


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return table(header, rows) + "\n"


def size(parameters: int, macs: int) -> str:
    return f"{parameters / 1e6:.2f}M / {macs / 1e6:.1f}M"


def cost(content: dict[str, Any]) -> str:
    texts = []
    for result in content["results"]:
        rows = []
        published_times = {method: f"{ratio:.3g}" for method, ratio in RELATIVE_TIME.get(result["model"], {}).items()}
        for method, row in result["methods"].items():
            ratios = (spread(row["step_ratios"]), spread(row["run_ratios"]), published_times.get(method, ""))
            memory = (f"{row['memory_mb']:.0f}", f"{row['memory_ratio']:.2f}")
            trained = size(row["parameters"], row["macs"])
            rows.append((method, *ratios, *memory, trained, size(row["deployed_parameters"], row["deployed_macs"])))
        header = ("method", "step", "whole run", "published run", "memory, MB", "memory", "trained", "deployed")
        updates = result["methods"].get("sgs", {}).get("seconds", {})
        share = ""
        if updates.get("update"):
            epoch = result["steps_an_epoch"] * statistics.median(result["methods"]["plain"]["seconds"]["step"])
            share = (
                f" One update of SGS takes {statistics.median(updates['update']) / epoch:.2f} of a plain epoch's time."
            )
        grown = " DyRep is measured at the average size of the published runs." if "dyrep" in result["methods"] else ""
        text = f"{result['model']}, recipe {result['recipe']} ({result['epochs']} epochs), batch {content['batch']}, "
        text += f"precision {content['precision']}, n = {content['rounds']} rounds of {_steps(content['steps'])}."
        texts.append(f"{text}{share}{grown}\n\n{_table(header, rows)}")
    return "\n".join(texts)


def _steps(number: int) -> str:
    return f"{number} step{'s'[: number != 1]}"


def measuring(content: dict[str, Any]) -> str:
    updates = [
        (
            str(row["size"]),
            spread(row["update"]),
            spread(row["forward"]),
            spread([u / f for u, f in zip(row["update"], row["forward"], strict=True)]),
            f"{max(row['memory_mb']):.0f}",
            str(len(row["update"])),
        )
        for row in content["update"]
    ]
    steps = [
        (
            str(row["size"]),
            spread(row["step"], 1e-3, 1),
            spread(row["scale"], 1e-3),
            spread(row["scale_share"], 1e-2),
            str(len(row["step"])),
        )
        for row in content["step"]
    ]
    header = ("batches of 128", "update, s", "forward alone, s", "forward passes", "added memory, MB", "n")
    return (
        _table(header, updates)
        + "\n"
        + _table(("batch", "step, ms", "scaling, ms", "fraction of a step, %", "n"), steps)
    )


def old_new(content: dict[str, Any]) -> str:
    """Return the table of two source trees measured in turn."""
    units = {"update": (1.0, "s"), "scale": (1e-3, "ms"), "step": (1.0, "s"), "memory": (1.0, "MB")}
    subjects = {
        "update": "update on {} batches",
        "scale": "scale_gradients, batch {}",
        "step": "training step with SGS, batch {}",
        "memory": "update on {} batches",
    }
    rows = []
    for row in content["rows"]:
        kind, size = row["what"].split()
        factor, unit = units[kind]
        old, new = (
            spread(row[name], factor) if len(row[name]) > 1 else f"{row[name][0]:.0f}" for name in ("old", "new")
        )
        ratio = spread(row["ratios"]) if len(row["ratios"]) > 1 else f"{row['ratios'][0]:.2f}"
        rows.append((f"{subjects[kind].format(size)}, {unit}", old, new, ratio, str(len(row["ratios"]))))
    commits = content["commits"]
    header = ("what", f"before ({commits['old']})", f"after ({commits['new']})", "after / before", "n")
    clock = "CPU time of one thread" if content["clock"] == "cpu" else "wall time"
    return f"VGG-16 with the small head, batches of 128 images; {clock}.\n\n" + _table(header, rows)


def published(content: dict[str, Any]) -> str:
    rows = []
    for row in content["rows"]:
        seconds, memory, differing = row["seconds"], row.get("memory_mb"), row.get("largest_difference")
        rows.append(
            (
                f"{row['model']}, {row['memory_format']}, {row['images']} images, {row['what']}",
                spread(seconds["ours"]),
                spread(seconds["published"]),
                spread(row["ratios"]),
                f"{memory['ours']:.0f} / {memory['published']:.0f}" if memory else "",
                "" if differing is None else f"{differing:.0e}",
                str(len(row["ratios"])),
            )
        )
    header = (
        "what",
        "backpass, s",
        "published, s",
        "times faster",
        "memory, MB (backpass / published)",
        "largest difference of scalings",
        "n",
    )
    return _table(header, rows)


def distributed(content: dict[str, Any]) -> str:
    rows = [
        (
            str(row["processes"]),
            f"{sum(row['sent']) / 1e6:.1f}",
            f"{row['maps'] / 1e6:.0f}",
            "yes" if row["equal"] else "no",
        )
        for row in content["rows"]
    ]
    return _table(("processes", "sent by each, MB", "feature maps, MB", "scalings equal one process's"), rows)


def studies(content: dict[str, Any]) -> str:
    rows = []
    for study in content["studies"]:
        for way, found in study["ways"].items():
            lost = sum(tries.count("lost") for tries in found["tried_again"].values())
            rows.append(
                (
                    f"{study['study']}, {way}",
                    str(study["runs"]),
                    str(len(found["killed"])),
                    str(lost),
                    "yes" if found["each_run_completed_once"] else "no",
                    "yes" if found["equal_to_one_worker"] else "no",
                )
            )
    skipped = content["postgresql_skipped"]
    header = (
        "study, workers",
        "runs",
        "workers killed",
        "tries lost",
        "each run completed once",
        "equal to one worker",
    )
    return _table(header, rows) + (f"\nWithout PostgreSQL: {skipped}.\n" if skipped else "")


def loss_ratios(result: dict[str, Any]) -> list[float]:
    seconds = result["seconds"]
    return [own / plain for plain, own in zip(seconds["plain"], seconds["power_grad"], strict=True)]


def power_grad(content: dict[str, Any]) -> str:
    rows = []
    for result in content["results"]:
        plain, own = (spread(result["seconds"][name], 1e-3, 3) for name in ("plain", "power_grad"))
        mode = "compiled" if result["compiled"] else "eager"
        shape = "x".join(map(str, result["shape"]))
        ratios = loss_ratios(result)
        rows.append((f"{mode}, {shape}", plain, own, spread(ratios), str(len(ratios))))
    return _table(("logits", "plain, ms", "PowerGrad, ms", "ratio", "n"), rows)


def throughput(content: dict[str, Any]) -> str:
    rows = []
    for result in content["results"]:
        rates = (spread([result["images"] / s for s in result["seconds"][name]], 1, 0) for name in ("trainer", "bare"))
        timm = result["timm_images_a_second"]
        timm = "n/a" if timm is None else f"{timm:.0f}"
        name = f"{result['model']}, batch {result['batch']}"
        rows.append((name, *rates, timm, spread(result["ratios"], digits=3), str(len(result["ratios"]))))
    settings = ("precision", "channels_last", "compile")
    text = f"Settings: {', '.join(f'{setting} {content[setting]}' for setting in settings)}.\n\n"
    header = ("setting", "trainer, images/s", "bare loop, images/s", "timm's script, images/s", "trainer / bare", "n")
    return text + _table(header, rows)


def gpu_tests(content: dict[str, Any]) -> str:
    failed = [*content["failure"], *content["error"]]
    names = "".join(f"\n- {name}" for name in failed)
    counts = f"{content['passed']} passed, {len(failed)} failed, {len(content['skipped'])} skipped"
    return f"{content['tests']} tests: {counts}.{names}\n"
