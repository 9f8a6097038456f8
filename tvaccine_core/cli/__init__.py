"""The command line: thin commands on the same store and configs as the page. Torch-free to import."""
