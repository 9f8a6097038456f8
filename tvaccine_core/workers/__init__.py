"""Processes that do the store's jobs."""
