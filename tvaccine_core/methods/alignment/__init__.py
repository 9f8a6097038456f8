"""Methods of the alignment stage, one algorithm per file."""
