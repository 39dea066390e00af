"""Telling people: each incident once, to every place that wants to know, and never on a caller's time."""

from .dispatch import Alerts
from .lanes import Lane
from .sinks import Webhook

__all__ = ["Alerts", "Lane", "Webhook"]
