"""Reading the command line, its help, and what each command does."""
