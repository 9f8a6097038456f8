"""Where examples and their exact judges come from. Torch-free."""
