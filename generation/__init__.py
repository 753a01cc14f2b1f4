"""Parts of test.py: where features come from, where images go."""
