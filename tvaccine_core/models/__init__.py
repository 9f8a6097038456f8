"""Base models: loading, files and sizes, adapter targets, anatomy and hooks."""
