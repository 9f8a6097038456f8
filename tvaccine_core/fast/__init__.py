"""Fast paths: faster forms of a model's modules, equal to rounding. Training is as right without them."""
