"""Model states: adapters stacked on one base, in memory and in files."""
