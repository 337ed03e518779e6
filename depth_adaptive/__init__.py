"""Depth-Adaptive Transformer (Elbayad, Gu, Grave, Auli, ICLR 2020, arXiv 1910.10073): nothing here yet."""
