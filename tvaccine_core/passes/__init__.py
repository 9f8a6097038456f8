"""Passes through a model that compute no more than a loss needs."""
