"""Sweeps: one experiment for every combination of some settings. Torch-free; the store's workers do the work."""
