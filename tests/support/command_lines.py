"""Command lines of a tiny search and a tiny training."""

SEARCH = (
    *("search", "--data", "digits", "--train-images", "120", "--batch-size", "16", "--channels", "2"),
    *("--layers", "3", "--nodes", "1", "--estimator", "sge", "--directions", "2", "--epochs", "2"),
    *("--log-every", "1", "--device", "cpu", "--threads", "1"),
)
TRAIN = (
    *("train", "--genotype", "darts-v2", "--recipe", "fast", "--data", "digits", "--train-images", "96"),
    *("--test-images", "60", "--batch-size", "32", "--channels", "2", "--layers", "3", "--epochs", "3"),
    *("--log-every", "1", "--device", "cpu", "--threads", "1"),
)
