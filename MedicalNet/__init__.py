"""MedicalNet features of volumes (Chen, Ma and Zheng 2019, arXiv:1904.00625)."""
