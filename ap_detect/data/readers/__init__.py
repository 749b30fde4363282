"""Reads a split from any folder of images: layouts, formats, checks."""
