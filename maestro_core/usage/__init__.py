"""What a provider reports after a call: tokens and paid uses by kind, and how to read them from its response."""

from ._usage import Usage
from .kinds import KINDS

__all__ = ["KINDS", "Usage"]
