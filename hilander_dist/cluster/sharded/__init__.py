"""The same over shards: what travels between tasks."""
