"""Between the forms of a model: plain, in training with blocks, fused, and plain again."""
