"""NAS-Bench-Macro (arXiv:2103.11922): its networks, their names, the supernet and the table of accuracies."""
