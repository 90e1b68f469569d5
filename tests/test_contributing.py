"""The steps of CONTRIBUTING.md, followed; and the import structure it describes."""

import ast
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed
from torch import nn

from backpass.experiments import RECIPES, Entry, Published, Table, get_table, table_study
from backpass.experiments.tables import TABLES
from backpass.models import create_model, register_model, registry
from backpass.training import TASKS, Task, import_path, methods
from backpass.training.augment import Augmentation
from backpass.training.images import ImageData, ImageSplit
from backpass.training.method import Method
from backpass.training.recipe import Recipe, Run, Runtime, SgsSettings
from backpass.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "backpass"
# Every package may import itself and those after it.
ORDER = [
    "__main__",
    "cli",
    "experiments",
    "training",
    "integrations",
    "reparam",
    "sgs",
    "agc",
    "pgt",
    "models",
    "_internal",
    "errors",
]


def small_data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 8, 8), generator=generator, dtype=torch.uint8)
    split = ImageSplit(pixels, torch.arange(16) % 4)
    return ImageData("small", split, split, tuple("abcd"), (8, 8), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def small_model(monkeypatch):
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))

    @register_model
    def small_net(num_classes: int = 4, in_channels: int = 3) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes)
        )

    return "small_net"


def trained(model: str, method: str, task: str = "classification") -> list[torch.Tensor]:
    recipe = Recipe(
        task=task,
        model=model,
        epochs=1,
        batch_size=8,
        augmentation=Augmentation(crop_padding=1, cutout=0),
        sgs=SgsSettings(warmup=0),
    )
    trainer = Trainer(Run(recipe, method), small_data(), runtime=Runtime(device="cpu"))
    trainer.fit()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_a_method_is_a_class_in_the_registry(small_model, monkeypatch):
    class Frozen(Method):
        """Trains nothing."""

        def scale_gradients(self) -> None:
            for parameter in self.context.model.parameters():
                parameter.grad = None

    monkeypatch.setitem(methods.METHODS, "frozen", Frozen)
    assert "frozen" in methods.list_methods()
    set_seed(0)
    initial = list(create_model(small_model, num_classes=4).parameters())
    assert all(map(torch.equal, trained(small_model, "frozen"), initial))
    assert not any(map(torch.equal, trained(small_model, "plain"), initial))


def test_a_model_is_a_decorated_function(small_model):
    assert create_model(small_model, num_classes=7)[3].out_features == 7
    assert trained(small_model, "sgs")


def test_a_task_is_a_class_by_its_import_path(small_model, monkeypatch):
    """The steps of CONTRIBUTING.md: metric, loss and evaluation, and the kind of loss for PGT."""

    class Brightness(Task):
        metric = "closeness"
        loss_kind = "binary_cross_entropy"

        def loss(self, output, target, criterion=None):
            wanted = torch.nn.functional.one_hot(target, 4).float()
            return (criterion or torch.nn.functional.binary_cross_entropy_with_logits)(output, wanted)

        def evaluation(self, device, alpha=None):
            return Closeness()

    class Closeness:
        def __init__(self):
            self.sums = torch.zeros(2)

        def update(self, output, target):
            right = output.sigmoid().gather(1, target[:, None])
            self.sums += torch.stack([right.sum(), torch.tensor(float(len(right)))])

        def compute(self, total):
            right, count = total(self.sums).tolist()
            return {"closeness": right / count}

    Brightness.__qualname__ = "Brightness"  # as at the top level of a module
    monkeypatch.setitem(globals(), "Brightness", Brightness)
    task = import_path(Brightness)
    kernels = {method: trained(small_model, method, task) for method in ("plain", "pgt", "sgs")}
    assert not any(map(torch.equal, kernels["plain"], kernels["pgt"]))
    monkeypatch.setitem(TASKS, "brightness", Brightness)
    assert all(map(torch.equal, trained(small_model, "plain", "brightness"), kernels["plain"]))


def test_a_table_is_a_value_in_the_tables(monkeypatch):
    recipe = RECIPES["digits"]
    entries = (
        Entry("plain", "A", "plain", recipe, published=Published(90.0)),
        Entry("sgs", "A", "sgs", recipe, "plain", published=Published(91.0)),
    )
    monkeypatch.setitem(TABLES, "own", Table("own", "A table", entries, 2, "two runs"))
    assert len(table_study(get_table("own")).runs()) == 4


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "backpass"


def imports(path: Path) -> set[str]:
    """Return the packages of backpass that a file imports."""
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found = {package_of(name) for name in names if name.split(".")[0] == "backpass"}
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "backpass"]
    return (found - {"backpass"}) | {alias.name for node in plain for alias in node.names} - {"__version__"}


def test_no_import_points_upwards():
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in ORDER, f"{path} belongs to no package of the map"
        allowed = set(ORDER[ORDER.index(own) :]) | ({"cli"} if own == "__main__" else set())
        assert imports(path) <= allowed, f"{path} imports {imports(path) - allowed}"


def test_the_import_check_sees_an_upward_import(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from backpass.experiments.study import Study\nfrom backpass import cli\nimport backpass.sgs.scaling\n"
    )
    assert imports(path) == {"experiments", "cli", "sgs"}


def test_no_cycle_between_modules():
    """Modules import each other in an order: none reaches itself through its imports at module level."""
    graph = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(("backpass", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        graph[name] = {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph.get(module, ()):
                if other != module and not module.startswith(f"{other}."):
                    visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 300
