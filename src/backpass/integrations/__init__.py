"""SGS and PGT in the loops of other frameworks. Each module imports its framework; this package imports none.

- :mod:`backpass.integrations.lightning`: a callback.
- :mod:`backpass.integrations.transformers`: a callback, and a loss for ``compute_loss_func``.
- :mod:`backpass.integrations.timm`: a loss scaler for the loop of timm's ``train.py``.

Accelerate needs none: ``if accelerator.sync_gradients: sgs.scale_gradients()`` after ``accelerator.backward`` and
before ``accelerator.clip_grad_norm_``, and ``accelerator.register_for_checkpointing(sgs)``.
"""
