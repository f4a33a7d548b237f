"""One module a command: inputs and options in, a run directory out."""
