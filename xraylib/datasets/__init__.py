"""Data sets, from names and files to pixels and splits."""
