"""Generated scenes in the formats of Cityscapes and MPII, and small models for them."""
