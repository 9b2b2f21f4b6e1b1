"""What every run needs, be it a search or a training: its directory, checkpoints, log, callbacks and loop."""
