"""Will it fit: the memory of a run, predicted from a model's config alone."""
