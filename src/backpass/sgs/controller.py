"""Spatial Gradient Scaling in a training loop: when to measure and when to scale."""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backpass._internal.batches import Forward
from backpass._internal.selection import Include
from backpass._internal.settings import COUNT, Range, check_number
from backpass._internal.wrappers import unwrap
from backpass.errors import InputError, NoEffectWarning, StateError
from backpass.sgs.applying import AppliedScalings
from backpass.sgs.distributed import ProcessGroup
from backpass.sgs.given_scalings import fixed_scalings, scalings_in
from backpass.sgs.layers import scalable_convs
from backpass.sgs.measuring import check_dilation, check_measure, measure_scalings
from backpass.sgs.scaling import check_k

__all__ = ["SpatialGradientScaling"]


class SpatialGradientScaling(AppliedScalings):
    """Scale the gradient of each convolution kernel, tap by tap, by what neighbouring input pixels share.

    For a kernel W with gradient dW, ``scale_gradients`` replaces dW by ``G * dW``, where the scaling G has the kernel's
    spatial shape, is strictly positive, has mean 1, and is the same for all channels. ``update`` measures G from the
    layer's own input: with ``S`` the normalised mutual information between a pixel and its neighbour at the tap's
    displacement, ``G = k * S / ((k - 1) * S + 1)`` per channel, then the mean over channels, then division by the mean
    over taps.

    The model is never altered: its ``state_dict`` is the plain one, and no hook stays on it.

    Args:
        model: any module with a convolution to scale (:func:`backpass.sgs.scalable_convs`), also wrapped or compiled.
        k: strength, above 0; smaller is stronger. 5 in the SGS paper.
        measure: ``"mutual_information"`` (the paper's) or ``"autocorrelation"``.
        warmup: first epoch that measures, counted from 0. 1 in the paper. Earlier epochs are plain training, without a
            warning: pass 0 for a training of one epoch, or by steps.
        every: epochs between later measurements. In the paper 5 for CIFAR-100 and ImageNet, 30 for runs of 600 epochs,
            10 in its Table 3.
        include: restrict the convolutions: glob patterns on module names, or ``(name, module) -> bool``.
        drop_near_equal: remove pairs that hold a zero or share a bin (the paper's ImageNet recipes).
        dilation: ``"measured"`` compares pixels as far apart as the taps of a dilated convolution are; ``"ignored"``
            pixels one apart, as the published estimator does.
        apply: ``"gradient"`` scales gradients; ``"update"`` scales what the optimizer adds to the weights (the paper's
            Adagrad*), through :meth:`scaled_update` or :meth:`attach`.
        process_group: the processes that measure together; default: all, where ``torch.distributed`` is in use. All of
            them call :meth:`update` at the same time, each with batches of its own.
        scaling: a fixed scaling instead of measured ones: a tensor of a kernel's spatial shape for all kernels of that
            shape, such as ``normalize(scaling_from_branches(["3x3", "1x3", "3x1"]))`` ("ACB without its cost"), or one
            tensor for each qualified parameter name. Other kernels are not scaled, and ``update`` is never due.

    Raises:
        InputError: no convolution to scale, or an argument out of range.

    Source: Detkov et al., "Reparameterization through Spatial Gradient Scaling", ICLR 2023.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    >>> sgs = SpatialGradientScaling(model, k=5.0)
    >>> sgs.update([torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    >>> model(torch.randn(2, 3, 8, 8)).mean().backward()
    >>> sgs.scale_gradients()
    >>> sorted(sgs.scalings), sgs.scalings["0.weight"].shape
    (['0.weight', '2.weight'], torch.Size([3, 3]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        k: float = 5.0,
        measure: Literal["mutual_information", "autocorrelation"] = "mutual_information",
        warmup: int = 1,
        every: int = 5,
        include: Include | None = None,
        drop_near_equal: bool = False,
        dilation: Literal["measured", "ignored"] = "measured",
        apply: Literal["gradient", "update"] = "gradient",
        process_group: ProcessGroup = None,
        scaling: Tensor | Mapping[str, Tensor] | None = None,
    ) -> None:
        check_measure(measure, drop_near_equal)
        check_dilation(dilation)
        if apply not in ("gradient", "update"):
            raise InputError(f"expected apply to be one of 'gradient', 'update', got {apply!r}; choose one of them")
        check_number("warmup", warmup, int, Range(at_least=0))
        check_number("every", every, int, COUNT)
        super().__init__(apply)
        self.k = check_k(k)
        self.measure: str = measure
        self.warmup = warmup
        self.every = every
        self.drop_near_equal = drop_near_equal
        self.dilation: str = dilation
        self.process_group = process_group
        self._include = include
        self._given = scaling
        self._epoch: int | None = None  # that start_epoch() measured last
        self.scalings = {}
        self.fixed = scaling is not None
        self.set_model(model)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self._layers)} kernels, k={self.k}, measure={self.measure!r}, "
            f"warmup={self.warmup}, every={self.every}, drop_near_equal={self.drop_near_equal}, "
            f"dilation={self.dilation!r}, apply={self.apply!r})"
        )

    def set_model(self, model: nn.Module) -> None:
        """Find the convolutions again, after layers were replaced, parametrised or added, or in another model.

        A kernel keeps its scaling where one of its name and shape had one before; the others start at one, and
        :meth:`due` is true at the next epoch after ``warmup``.

        Raises:
            InputError: as at construction.
        """
        layers = scalable_convs(model, self._include)
        ones = partial(torch.ones, dtype=torch.float32, device="cpu")
        scalings = {name: ones(layer.kernel_size) for name, layer in layers.items()}
        if self._given is not None:
            given = fixed_scalings(self._given, scalings)
            layers = {name: layer for name, layer in layers.items() if name in given}
        else:
            given = {n: g for n, g in self.scalings.items() if n in scalings and g.shape == scalings[n].shape}
        self._model, self._layers = unwrap(model), layers
        self.scalings = {name: scalings[name] for name in layers}
        self._placed_scalings()
        self._set(given)
        self._epoch = None
        self._measured = self.fixed or (self._measured and given.keys() == layers.keys())
        self._calls.started()

    def due(self, epoch: int) -> bool:
        """Return whether epoch ``epoch``, counted from 0, starts with :meth:`update`.

        At ``warmup``, then at multiples of ``every``; and at every epoch after ``warmup`` until something is
        measured or loaded, as after a resume without the state. Never with a fixed scaling. In a loop that counts
        epochs from 1, pass ``epoch - 1``.

        Warns:
            NoEffectWarning: at the next scaled step, if ``update`` is not called before it.
        """
        after_warmup = epoch > self.warmup and (epoch % self.every == 0 or not self._measured)
        due = not self.fixed and (epoch == self.warmup or after_warmup)
        self._calls.asked(epoch, due, self._layers)
        return due

    def check_epochs(self, epochs: float) -> None:
        """Warn if a training of ``epochs`` epochs ends before its first measurement, so that all of it is plain.

        The package's trainer and the callbacks for Lightning and the Hugging Face ``Trainer`` do it.

        Warns:
            NoEffectWarning: it does.
        """
        if not self._measured and 0 < epochs <= self.warmup:
            warnings.warn(
                f"{epochs:g} epochs of training end before scalings are measured, at epoch {self.warmup} counted from "
                "0, so that all of it is plain; pass warmup=0, or train longer",
                NoEffectWarning,
                stacklevel=2,
            )

    # Measuring

    def start_epoch(
        self, epoch: int, loader: Iterable[Any], *, batches: int = 2, forward: Forward | str | None = None
    ) -> bool:
        """Measure on the first ``batches`` of ``loader`` if :meth:`update` is :meth:`due`; return whether it did.

        One line at the start of each epoch instead of two. The published recipes measure on 2 batches, or on 20 where
        ``every=30``. An epoch that is resumed in its middle is not measured again; after a call with an earlier epoch,
        which starts another training, every epoch is; until then that training has the scalings of the one before, so
        make a new controller for one that starts plain. In a training of one epoch, or by steps on a stream of data,
        nothing is measured unless ``warmup=0``.
        """
        if self._epoch is not None and epoch < self._epoch:
            self._epoch = None
        if epoch == self._epoch or not self.due(epoch):
            return False
        self.update(loader, forward, batches=batches)
        self._epoch = int(epoch)
        return True

    def update(
        self, loader: Iterable[Any], forward: Forward | str | None = None, *, batches: int | None = None
    ) -> None:
        """Measure the scalings on the batches of ``loader``; all layers change together or, after an error, none.

        The model runs twice over the batches and is left unchanged (:func:`backpass.sgs.measure_scalings`, which also
        states the forms of a batch). A layer that no batch reaches, or none with all input channels of its kernel
        (slimmable networks), or whose input is not finite, keeps its scaling; a warning names it, once.

        No more batches are read than needed, and the random states of torch, Python, NumPy and the loader are restored,
        so that training sees the same batches as without this call, also while it reads the same ``DataLoader``.

        Args:
            loader: a ``DataLoader`` or any iterable of batches: input tensors, or tuples that start with one, such as
                ``(input, target)``.
            forward: runs the model on a batch of any other form, such as ``lambda batch: model(batch["image"])``; or
                the name of the input in batches that are mappings, such as ``"pixel_values"``. Default:
                ``model(input)`` on the model's device, with floating point cast to the dtype of the first kernel to
                measure, if none of them has its dtype.
            batches: the number of batches to read; default: all.

        Raises:
            InputError: no batch, an empty or non-tensor batch, or a batch that the model cannot run on.
            StateError: the scaling is fixed.

        Warns:
            NoEffectWarning: layers were replaced, parametrised or added since they were found (:meth:`set_model`), or
                kernels were trained since the last update without scaling.
        """
        if self.fixed:
            raise StateError("expected measured scalings, got a fixed one; leave out scaling=... to measure")
        self._calls.changed_layers(self._model, self._include, self._layers)
        attached = bool(self._attachments.optimizers())
        self._calls.before_update(self._layers, scaling_expected=attached or self._measured)
        measured = measure_scalings(
            self._model,
            loader,
            self._layers,
            k=self.k,
            measure=self.measure,
            drop_near_equal=self.drop_near_equal,
            dilation=self.dilation,
            forward=forward,
            process_group=self.process_group,
            batches=batches,
        )
        self._calls.kept("no measuring batch reached", measured.unreached)
        self._calls.kept("found NaN or infinity in the input of", measured.not_finite)
        self._set(measured.scalings)
        self._measured = True
        self._calls.updated(self._layers)

    def _set(self, scalings: Mapping[str, Tensor]) -> None:
        """Write scalings in place, so that captured graphs and held references see them."""
        for name, scaling in scalings.items():
            self.scalings[name].copy_(scaling)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the scalings and the settings that made them; loads with ``weights_only=True``."""
        scalings = {name: scaling.detach().clone() for name, scaling in self.scalings.items()}
        return {"scalings": scalings, "measured": self._measured, "epoch": self._epoch} | self._settings()

    def _settings(self) -> dict[str, Any]:
        """Return the settings that the scalings depend on."""
        names = ("k", "measure", "drop_near_equal", "dilation", "apply")
        return {name: getattr(self, name) for name in names} | {"scaling": "fixed" if self.fixed else "measured"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the scalings of :meth:`state_dict`, made with the same settings on the same layers.

        Raises:
            InputError: other settings or layers, or a scaling that is not finite, not above 0 or of another shape;
                nothing is loaded then.
        """
        self._set(scalings_in(state, self._settings(), self.scalings))
        self._measured, self._epoch = state["measured"], state["epoch"]
        if self._measured:
            self._calls.loaded()
