"""Whether an agent goes round in circles, judged from hashes of what its tools were asked and what they answered."""

from .fingerprints import Outcome, fingerprint, outcome, spoken
from .guard import Guard, Scope
from .tracks import Loop, Shape, Track

__all__ = ["Guard", "Loop", "Outcome", "Scope", "Shape", "Track", "fingerprint", "outcome", "spoken"]
