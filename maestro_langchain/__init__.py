"""Maestro for LangChain: a callback handler that prices, attributes and caps every call it sees."""

from .callbacks import MaestroCallbackHandler

__all__ = ["MaestroCallbackHandler"]
