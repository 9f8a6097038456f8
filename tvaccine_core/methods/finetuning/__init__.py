"""Methods of the fine-tuning stage, one algorithm per file."""
