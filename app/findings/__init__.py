"""Recorded sweeps and the table of a sweep: what many runs together say."""
