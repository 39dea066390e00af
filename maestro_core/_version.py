"""The version, read by the build and by `maestro --version`."""

__all__ = ["__version__"]

__version__ = "0.1.0"
