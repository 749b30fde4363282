"""Datasets: parse (voc, coco, shapes), augment, order and batch (pipeline)."""
