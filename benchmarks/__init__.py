"""What the project costs beside the plain way to write it: python -m benchmarks.NAME --help."""
