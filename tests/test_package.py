"""What `import backpass` needs, tested in interpreters of their own."""

import re
import subprocess
import sys

import pytest

import backpass

# NumPy is not among them: torch looks for it itself.
EXTRA = [
    "accelerate",
    "jinja2",
    "lightning",
    "matplotlib",
    "optuna",
    "pytorch_lightning",
    "platformdirs",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "timm",
    "tabulate",
    "torchmetrics",
    "torchvision",
    "transformers",
    "tyro",
    "vl_convert",
]

HIDE = f"""
import importlib.machinery, sys
class Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {EXTRA!r} else super().find_spec(name, path, target)
sys.meta_path[:] = [Hiding if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_methods_work_with_torch_alone():
    done = run(
        HIDE
        + """
import torch, backpass
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(32, 4))
sgs = backpass.SpatialGradientScaling(model)
criterion = backpass.PowerGradCrossEntropyLoss(alpha=0.3)
x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 4
sgs.update([x])
criterion(model(x), y).backward()
sgs.scale_gradients()
backpass.adaptive_clip_grad_(model)
torch.optim.SGD(model.parameters(), lr=0.1).step()
print("trained", backpass.models.create_model("resnet18") is not None)
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["trained", "True"]


def test_the_extra_is_hidden():
    assert "No module named 'torchvision'" in run(HIDE + "import torchvision").stderr


def test_import_loads_nothing_of_the_extra():
    code = f"import sys, backpass; print([n for n in {EXTRA!r} if n in sys.modules])"
    assert run(code).stdout.strip() == "[]"


def test_the_command_line_names_the_missing_extra():
    done = run(HIDE + "from backpass.__main__ import main; sys.exit(main(['list']))")
    assert done.returncode == 2
    assert "which is not installed; install it with: pip install 'backpass[lab]'" in done.stderr


@pytest.mark.parametrize("name", ["training", "experiments"])
def test_packages_of_the_extra_name_it(name):
    done = run(HIDE + f"import backpass.{name}")
    assert done.returncode == 1
    assert re.search("MissingExtraError: (training|experiments) need ", done.stderr)
    assert "which is not installed; install it with: pip install 'backpass[lab]'" in done.stderr


def test_every_public_name_exists_and_is_documented():
    for name in backpass.__all__:
        assert getattr(backpass, name).__doc__, name


@pytest.mark.parametrize("name", ["lightning", "transformers", "timm"])
def test_integrations_name_what_they_miss(name):
    done = run(HIDE + f"import backpass.integrations.{name}")
    assert done.returncode == 1
    assert f"need {name}, which is not installed; install it with: pip install 'backpass[" in done.stderr
