"""Semantic segmentation and key points: data, targets, losses, evaluation and metrics of SGS Tables 7 and 8."""
