"""Whether a series of spend is as it usually is: pure detectors, fed minute by minute."""

from .burn import Burn
from .detector import Detector, Finding
from .series import Series

__all__ = ["Burn", "Detector", "Finding", "Series"]
