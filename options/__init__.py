"""Command-line flags: one flag, one place, checked when parsed."""
