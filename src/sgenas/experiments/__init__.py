"""Experiments of many runs. So far: Table 1 of the paper, eight searches and the training of their cells."""
