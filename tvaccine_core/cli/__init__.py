"""The command line: a thin command a capability, on the same store and configs as the page. Torch-free to import."""
