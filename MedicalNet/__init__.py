"""Evaluation of generated volumes, with features of MedicalNet (Chen et al. 2019, arXiv:1904.00625)."""
