"""Processes that do the jobs in the run store."""
