"""The version, read by the build and by `maestro --version`."""

__version__ = "0.1.0"
