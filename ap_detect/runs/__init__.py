"""A run: its folder, and what its config stands for."""
