"""What test.py is made of: where features come from, where images go."""
