"""Helpers that know no model: errors, colours, HTML pages, checkpoints, processes."""
