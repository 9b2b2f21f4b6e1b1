"""The command `sgenas`. Nothing here imports torch before a command needs it."""
