"""The project's cost compared with a plain implementation: python -m benchmarks.NAME --help."""
