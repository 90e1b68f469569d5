"""DyRep: which convolution grows, how it grows, which branches go, and what the optimizer then holds."""
