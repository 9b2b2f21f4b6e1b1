"""The DARTS search space (arXiv:1806.09055): settings, supernet, discrete network, published cells."""
