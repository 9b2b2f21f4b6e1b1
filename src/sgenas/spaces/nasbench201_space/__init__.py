"""NAS-Bench-201 (arXiv:2001.00326): its cells, their names, the supernet and the table of accuracies."""
