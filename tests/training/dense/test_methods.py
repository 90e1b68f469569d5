"""The methods take a step on both tasks, with the models that have a dense output."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from examples.generated_scenes.models import small_heatmaps, small_pspnet

from backpass.errors import BackpassWarning
from backpass.models import create_model
from backpass.pgt import power_grad_cross_entropy
from backpass.sgs import SpatialGradientScaling, scalable_convs
from backpass.training.dense.heatmaps import draw_heatmaps, heatmap_loss
from backpass.training.dense.segmentation_loss import segmentation_loss


def segmentation(criterion=F.cross_entropy):
    model = create_model("pspnet18", num_classes=5)
    images = F.interpolate(torch.randn(2, 3, 9, 9), size=(65, 65), mode="bilinear")
    labels = torch.randint(5, (2, 65, 65))
    labels[:, :9] = 255
    return model, images, lambda output: segmentation_loss(output, labels, criterion=criterion)


def pose():
    model = create_model("pose_resnet18")
    images = F.interpolate(torch.randn(2, 3, 12, 12), size=(96, 96), mode="bilinear")
    target = draw_heatmaps(24 * torch.rand(2, 16, 2), torch.rand(2, 16) < 0.8, (24, 24))
    return model, images, lambda output: heatmap_loss(output, target)


def gradients(model, images, loss, autocast=False):
    """Return all gradients of one step; dropout and the order of batch statistics follow from a seed."""
    torch.manual_seed(3)
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(model(images))
    value.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("task", "convs"), [(segmentation, 19), (pose, 17)])
@pytest.mark.parametrize(("channels_last", "bf16"), [(False, False), (True, False), (False, True)])
def test_sgs_scales_the_gradients_of_every_conv(task, convs, channels_last, bf16):
    model, images, loss = task()
    if channels_last:
        model, images = (part.to(memory_format=torch.channels_last) for part in (model, images))
    plain = gradients(model, images, loss, bf16)
    sgs = SpatialGradientScaling(model)
    sgs.update([images], forward=getattr(model, "all_heads", None))
    assert len(sgs.scalings) == convs == len(scalable_convs(model))
    again = gradients(model, images, loss, bf16)
    sgs.scale_gradients()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, again[name] * sgs.scalings.get(name, torch.ones(())))
    torch.testing.assert_close(again["backbone.conv1.weight"], plain["backbone.conv1.weight"])
    assert not any("upsampling" in name for name in sgs.scalings)
    assert all((scaling.max() - scaling.min()) > 1e-3 for scaling in sgs.scalings.values())


def test_sgs_names_the_auxiliary_head_that_measuring_in_eval_mode_does_not_reach():
    model, images, _ = segmentation()
    with pytest.warns(BackpassWarning, match="no measuring batch reached auxiliary.0.weight, which keeps its scaling"):
        SpatialGradientScaling(model).update([images])


def test_pgt_acts_on_both_heads():
    torch.manual_seed(0)
    model, images, plain_loss = segmentation()
    torch.manual_seed(0)
    powered_loss = segmentation(partial(power_grad_cross_entropy, alpha=0.3))[2]
    plain, powered = gradients(model, images, plain_loss), gradients(model, images, powered_loss)
    for name in ("head.4.weight", "auxiliary.4.weight", "backbone.conv1.weight"):
        assert not torch.allclose(plain[name], powered[name], rtol=1e-2), name


def one_step(task, compiled):
    """Return all parameters after a step of SGD under SGS, and for segmentation under PGT too."""
    torch.manual_seed(0)
    torch.compiler.reset()
    images = F.interpolate(torch.randn(2, 3, 9, 9), size=(33, 33), mode="bilinear")
    if task == "segmentation":
        model, labels = small_pspnet(5), torch.randint(5, (2, 33, 33))
        loss = partial(segmentation_loss, target=labels, criterion=partial(power_grad_cross_entropy, alpha=0.3))
    else:
        model, target = small_heatmaps(4), draw_heatmaps(9 * torch.rand(2, 4, 2), torch.ones(2, 4) > 0, (10, 10))
        loss = partial(heatmap_loss, target=target)
    model.eval()  # dropout draws other numbers when it is compiled
    forward = getattr(model, "all_heads", model)
    if compiled:
        forward = torch.compile(forward, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sgs = SpatialGradientScaling(model)
    sgs.update([images], forward=getattr(model, "all_heads", None))
    loss(forward(images)).backward()
    sgs.scale_gradients()
    optimizer.step()
    assert all(scaling.max() > scaling.min() for scaling in sgs.scalings.values())
    return dict(model.named_parameters())


@pytest.mark.parametrize("task", ["segmentation", "keypoints"])
def test_a_compiled_model_takes_the_same_step(task):
    torch.testing.assert_close(one_step(task, compiled=True), one_step(task, compiled=False))
