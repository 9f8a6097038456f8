"""T-Vaccine Lab's engine: alignment that resists harmful fine-tuning, measured. Importing it imports no torch."""

__version__ = "0.1.0"
