"""The blocks: parallel branches in training that one convolution equals in eval mode."""
