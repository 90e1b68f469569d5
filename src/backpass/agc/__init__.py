"""Adaptive gradient clipping (AGC): bound each unit's gradient by a fraction of the unit's own norm."""

from backpass.agc.clipping import AdaptiveGradientClipping, adaptive_clip_grad_
from backpass.agc.unitwise import unitwise_norm

__all__ = ["AdaptiveGradientClipping", "adaptive_clip_grad_", "unitwise_norm"]
