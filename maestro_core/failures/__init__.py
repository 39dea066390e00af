"""What a failed model call means: try elsewhere, wait, stop asking that endpoint, or tell the caller; and whether it was billed."""

from __future__ import annotations

from ._classify import Failure, classify, pause_s
from ._kinds import TREATMENTS, Breaker, FailureKind, Treatment

__all__ = ["TREATMENTS", "Breaker", "Failure", "FailureKind", "Treatment", "classify", "pause_s"]
