"""Fast paths: own forms of a model's modules, equal to rounding. Without anything from here training is as right."""
