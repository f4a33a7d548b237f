"""Property tests draw the same examples every time, and none is judged by its time."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True)
settings.load_profile("unit")
