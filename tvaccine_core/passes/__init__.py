"""Passes through a model: what a loss needs and nothing else."""
