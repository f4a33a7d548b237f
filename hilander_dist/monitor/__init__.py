"""What an operator sees of a run: log lines and progress."""
