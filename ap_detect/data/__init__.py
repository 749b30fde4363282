"""Datasets: readers -> records -> augment -> pipeline; shapes are drawn."""
