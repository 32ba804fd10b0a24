"""Vessel segmentation: label tables, scores, and what synthetic volumes are good for."""
