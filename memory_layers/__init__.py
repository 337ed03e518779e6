"""Product-key memory layers (Lample et al., NeurIPS 2019, arXiv 1907.05242): nothing here yet."""
