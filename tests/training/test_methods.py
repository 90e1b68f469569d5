from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from backpass.errors import InputError
from backpass.models import create_model
from backpass.reparam import block_map
from backpass.training.classification import Classification
from backpass.training.dense.keypoints import KeypointHeatmaps
from backpass.training.method import Context, Method
from backpass.training.methods import METHODS, build_methods, check_method, convert, deploy, list_methods
from backpass.training.optimization import build_optimizer
from backpass.training.recipe import AgcSettings, DyRepSettings, OptimizerSettings, ReparamSettings, SgsSettings


def test_listed_methods_are_accepted():
    for name in list_methods():
        assert "+".join(check_method(name)) == ("" if name == "plain" else name)


@pytest.mark.parametrize(
    ("name", "text"),
    [("sgs+foo", "got 'sgs\\+foo' with the unknown 'foo'"), ("pgt+pgt", "a repeated part"), ("", "unknown ''")],
)
def test_other_names_are_refused(name, text):
    with pytest.raises(InputError, match=text):
        check_method(name)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("dyrep+acb", "dyrep and acb"), ("acb+dbb", "acb and dbb"), ("repvgg+pgt+acb", "repvgg and acb")],
)
def test_two_methods_that_alter_the_structure_are_refused(name, parts):
    with pytest.raises(InputError) as refused:
        check_method(name)
    assert str(refused.value) == (
        "expected at most one method that alters the structure of the model (acb, repvgg, dbb, dbb_dyrep, dyrep), got "
        f"{name!r} with {parts}; train them in separate runs"
    )


@pytest.mark.parametrize("name", ["sgs+dyrep", "dyrep+sgs", "pgt+dyrep+sgs"])
def test_sgs_does_not_go_with_dyrep(name):
    with pytest.raises(InputError, match=r"got '.*': dyrep replaces kernels .* use sgs with fixed branches"):
        check_method(name)


@pytest.mark.parametrize("name", ["sgs+acb", "sgs+dbb_dyrep", "pgt+dyrep", "dyrep+agc", "sgs+pgt+agc+repvgg"])
def test_one_structure_goes_with_the_others(name):
    assert check_method(name) == name.split("+")


@pytest.mark.parametrize(
    ("block", "scaled"),
    [
        ("acb", {"kxk.conv": (3, 3), "kx1.conv": (3, 1), "1xk.conv": (1, 3)}),
        ("repvgg", {"kxk.conv": (3, 3)}),
        ("dbb", {"kxk.conv": (3, 3), "1x1_kxk.conv": (3, 3)}),
        ("dbb_dyrep", {"kxk.conv": (3, 3), "1x1_kxk.conv": (3, 3)}),
    ],
)
def test_sgs_scales_the_kernel_of_each_branch_by_its_own_input(block, scaled, recipe):
    model = convert(f"sgs+{block}", recipe, create_model("digits_net", num_classes=3))
    context = Context(recipe, model, Classification(), torch.optim.SGD(model.parameters(), lr=0.1))
    sgs = build_methods(f"sgs+{block}", context)["sgs"]
    sgs.start_epoch(1, lambda n: [torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))])
    own = {name: s for name, s in sgs.sgs.scalings.items() if name.startswith("conv2.")}
    assert {
        name.removeprefix("conv2.branches.").removesuffix(".weight"): tuple(s.shape) for name, s in own.items()
    } == scaled
    for scaling in own.values():
        assert scaling.mean().item() == pytest.approx(1.0)
        assert scaling.flatten()[scaling.numel() // 2] > scaling.flatten()[0]


def context_for(recipe, task=None) -> Context:
    model = create_model("digits_net", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Context(recipe, model, task or Classification(), optimizer)


@pytest.mark.parametrize(
    "settings",
    [
        SgsSettings(k=2.0, measure="autocorrelation", warmup=2, every=7, dilation="ignored", apply="update"),
        SgsSettings(drop_near_equal=True),
    ],
)
def test_the_settings_of_the_recipe_reach_sgs(settings, recipe):
    sgs = METHODS["sgs"](context_for(replace(recipe, sgs=settings))).sgs
    for name in ("k", "measure", "warmup", "every", "drop_near_equal", "dilation", "apply"):
        assert getattr(sgs, name) == getattr(settings, name), name


def test_the_settings_of_the_recipe_reach_the_other_methods(recipe):
    recipe = replace(
        recipe,
        agc=AgcSettings(clip_factor=0.2, eps=0.05, head=None),
        reparam=ReparamSettings(acb_gamma=0.7),
        dyrep=DyRepSettings(every=4, until=9, metric="grad_norm", recalibration_batches=3),
    )
    agc = METHODS["agc"](context_for(recipe)).agc
    assert (agc.clip_factor, agc.eps, agc.head) == (0.2, 0.05, None)
    dyrep = METHODS["dyrep"](replace(context_for(recipe), seed=5)).dyrep
    assert (dyrep.every, dyrep.until, dyrep.metric, dyrep.recalibration_batches) == (4, 9, "grad_norm", 3)
    assert dyrep._generator.initial_seed() == 5
    acb = convert("acb", recipe, create_model("digits_net", num_classes=3))
    torch.testing.assert_close(acb.conv2.main.norm.weight, torch.full_like(acb.conv2.main.norm.weight, 0.7))


def test_plain_is_no_method_and_pairs_compose(recipe):
    assert build_methods("plain", context_for(recipe)) == {}
    assert list(build_methods("sgs+pgt", context_for(recipe))) == ["sgs", "pgt"]


@pytest.mark.parametrize("name", ["acb", "repvgg", "dbb", "dbb_dyrep"])
def test_branched_methods_convert_the_model_and_lead_back(name, recipe):
    plain = create_model("digits_net", num_classes=3)
    branched = convert(name, recipe, plain)
    assert sum(p.numel() for p in branched.parameters()) > sum(p.numel() for p in plain.parameters())
    plain.load_state_dict(deploy(name, branched.eval()).state_dict(), strict=True)
    assert convert("plain", recipe, plain) is plain
    assert convert("sgs+pgt", recipe, plain) is plain


def test_dyrep_grows_when_due(recipe):
    context = context_for(
        replace(recipe, dyrep=DyRepSettings(every=2, until=4, metric="snip", recalibration_batches=1))
    )
    dyrep = METHODS["dyrep"](context)
    batch = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = []
    for epoch in range(5):
        context.model(batch).square().mean().backward()
        with dyrep.around_step():
            context.optimizer.step()
        context.optimizer.zero_grad()
        changed.append(dyrep.end_epoch(epoch, lambda n: [batch]))
    assert changed == [False, True, False, True, False]
    assert len(block_map(context.model)) >= 1
    deployed = deploy("dyrep", context.model.eval())
    assert not block_map(deployed)
    torch.testing.assert_close(deployed(batch), context.model(batch), rtol=1e-3, atol=1e-4)


def test_dyrep_places_new_parameters_by_the_learning_rates_of_the_recipe(recipe):
    settings = OptimizerSettings(lr=0.1, lr_factors=(("conv3*", 10.0),), decay_norm_and_bias=False)
    dyrep = DyRepSettings(every=1, until=9, metric="random", recalibration_batches=1)
    model = create_model("digits_net", num_classes=3)
    optimizer = build_optimizer(model, settings)
    context = Context(replace(recipe, optimizer=settings, dyrep=dyrep), model, Classification(), optimizer)
    method = METHODS["dyrep"](context)
    batch = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for epoch in range(9):
        model(batch).square().mean().backward()
        with method.around_step():
            optimizer.zero_grad()
        method.end_epoch(epoch, lambda n: [batch])
    places = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    grown = {name: places[id(p)] for name, p in model.named_parameters() if ".branches." in name}
    assert {name.partition(".")[0] for name in grown} == {"conv1", "conv2", "conv3"}
    for name, parameter in model.named_parameters():
        group = places[id(parameter)]
        assert group["lr"] == pytest.approx(1.0 if name.startswith("conv3") else 0.1), name
        # No normalisation of conv3 has a group of its learning rate and no decay: the rate decides.
        decayed = parameter.ndim > 1 or name.startswith("conv3")
        assert group["weight_decay"] == (settings.weight_decay if decayed else 0.0), name


def test_pgt_replaces_the_loss_and_needs_classification(recipe):
    task = Classification(label_smoothing=0.1)
    method = METHODS["pgt"](context_for(recipe, task))
    logits = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    target = torch.tensor([1])
    loss = method.criterion(task.loss)(logits, target)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, target, label_smoothing=0.1).item())
    (gradient,) = torch.autograd.grad(loss, logits)
    smoothed = torch.tensor([[0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]])
    torch.testing.assert_close(gradient, torch.softmax(recipe.pgt.alpha * logits.detach(), 1) - smoothed)
    other = METHODS["pgt"](context_for(recipe, KeypointHeatmaps(16)))
    with pytest.raises(InputError, match="got KeypointHeatmaps, whose loss is neither; choose another method"):
        other.criterion(task.loss)


def test_pgt_before_a_loss_of_another_method_and_not_after(recipe, monkeypatch):
    class Larger(Method):
        def criterion(self, plain):
            return lambda output, target: 1000 * plain(output, target)

    monkeypatch.setitem(METHODS, "larger", Larger)

    def loss(name):
        context = context_for(recipe)
        criterion = context.task.loss
        for method in build_methods(name, context).values():
            criterion = method.criterion(criterion)
        return criterion(torch.zeros(2, 3), torch.tensor([0, 1]))

    torch.testing.assert_close(loss("pgt+larger"), 1000 * loss("pgt"))
    with pytest.raises(InputError, match=r"got one of another method; name pgt before that"):
        loss("larger+pgt")


def test_sgs_measures_when_due_and_only_then(recipe):
    asked = []

    def batches(count):
        asked.append(count)
        return [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))] * count

    sgs = METHODS["sgs"](context_for(replace(recipe, sgs=SgsSettings(warmup=1, every=2, batches=3))))
    assert [sgs.start_epoch(epoch, batches) for epoch in range(5)] == [False, True, True, False, True]
    assert asked == [3, 3, 3]


@pytest.mark.parametrize("apply", ["gradient", "update"])
@pytest.mark.parametrize("fixed", [{"alpha": 2, "beta": 4}, {"branches": ("3x3", "1x3", "3x1")}])
def test_a_fixed_scaling_draws_no_batches_and_is_applied(recipe, fixed, apply):
    settings = SgsSettings(warmup=0, every=1, apply=apply, **fixed)
    context = context_for(replace(recipe, sgs=settings))
    sgs, model = METHODS["sgs"](context), context.model

    def batches(count):
        raise AssertionError("a fixed scaling needs no measuring batches")

    assert [sgs.start_epoch(epoch, batches) for epoch in range(6)] == [False] * 6
    model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))).sum().backward()
    weights = [p for p in model.parameters() if p.ndim == 4 and p.shape[2:] == (3, 3)]
    plain = [(weight.detach().clone(), weight.grad.clone()) for weight in weights]
    sgs.scale_gradients()
    with sgs.around_step():
        context.optimizer.step()
    ratios = {"alpha": [[0.5625, 1.125, 0.5625], [1.125, 2.25, 1.125], [0.5625, 1.125, 0.5625]]}
    expected = torch.tensor(ratios.get(next(iter(fixed)), [[0.6, 1.2, 0.6], [1.2, 1.8, 1.2], [0.6, 1.2, 0.6]]))
    assert weights
    for weight, (before, gradient) in zip(weights, plain, strict=True):
        torch.testing.assert_close(weight.detach(), before - 0.1 * expected * gradient)


def test_a_fixed_scaling_is_kept_in_the_state(recipe):
    def method(**settings):
        return METHODS["sgs"](context_for(replace(recipe, sgs=SgsSettings(**settings))))

    first, again = method(alpha=0.5, beta=0.25), method(alpha=0.5, beta=0.25)
    again.load_state_dict(first.state_dict())
    assert set(again.sgs.scalings) == set(first.sgs.scalings)
    assert all(torch.equal(scaling, again.sgs.scalings[name]) for name, scaling in first.sgs.scalings.items())


def test_sgs_on_the_update_leaves_gradients_alone(recipe):
    context = context_for(replace(recipe, sgs=SgsSettings(apply="update")))
    sgs, model = METHODS["sgs"](context), context.model
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
