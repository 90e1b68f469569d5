from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from backpass.errors import InputError
from backpass.models import create_model
from backpass.training.methods import METHODS, build_methods, check_method, list_methods
from backpass.training.recipe import SgsSettings
from backpass.training.task import Classification


def test_listed_methods_are_accepted():
    for name in list_methods():
        assert "+".join(check_method(name)) == ("" if name == "plain" else name)


@pytest.mark.parametrize(
    ("name", "text"),
    [("sgs+foo", "got 'sgs\\+foo': unknown 'foo'"), ("pgt+pgt", "a part is repeated"), ("", "unknown ''")],
)
def test_other_names_are_refused(name, text):
    with pytest.raises(InputError, match=text):
        check_method(name)


def test_plain_is_no_method_and_pairs_compose(recipe):
    model, task = create_model("digits_net", num_classes=3), Classification(3)
    assert build_methods("plain", recipe, model, task) == {}
    assert list(build_methods("sgs+pgt", recipe, model, task)) == ["sgs", "pgt"]


def test_pgt_replaces_the_loss_and_needs_classification(recipe):
    model, task = create_model("digits_net", num_classes=3), Classification(3, label_smoothing=0.1)
    method = METHODS["pgt"](recipe, model, task)
    logits = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    target = torch.tensor([1])
    loss = method.criterion(task.loss)(logits, target)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, target, label_smoothing=0.1).item())
    (gradient,) = torch.autograd.grad(loss, logits)
    smoothed = torch.tensor([[0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]])
    torch.testing.assert_close(gradient, torch.softmax(recipe.pgt.alpha * logits.detach(), 1) - smoothed)
    other = METHODS["pgt"](recipe, model, SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="SimpleNamespace has another loss"):
        other.criterion(task.loss)


def test_sgs_measures_when_due_and_only_then(recipe):
    model, task = create_model("digits_net", num_classes=3), Classification(3)
    asked = []

    def batches(count):
        asked.append(count)
        return [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))] * count

    sgs = METHODS["sgs"](replace(recipe, sgs=SgsSettings(warmup=1, every=2, batches=3)), model, task)
    assert [sgs.start_epoch(epoch, batches) for epoch in range(5)] == [False, True, True, False, True]
    assert asked == [3, 3, 3]


def test_sgs_on_the_update_leaves_gradients_alone(recipe):
    model, task = create_model("digits_net", num_classes=3), Classification(3)
    sgs = METHODS["sgs"](replace(recipe, sgs=SgsSettings(apply="update")), model, task)
    sgs.start_epoch(1, lambda n: [torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))])
    model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))).sum().backward()
    weight = next(p for p in model.parameters() if p.ndim == 4)
    gradient, before = weight.grad.clone(), weight.detach().clone()
    sgs.scale_gradients()
    assert torch.equal(weight.grad, gradient)
    with sgs.around_step():
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    scaling = next(iter(sgs.sgs.scalings.values()))
    torch.testing.assert_close(weight.detach(), before - 0.1 * scaling * gradient)
