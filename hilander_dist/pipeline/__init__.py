"""The jobs, from a configuration to a finished output directory."""
