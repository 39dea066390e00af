"""The data that passes between a user, the core, the ledgers and the plugins. Plain, frozen, without behaviour."""

from ._alert import Alert, Note
from ._call import UNATTRIBUTED, Attribution, Call, Cost, CostLine, Step, new_key
from ._caps import Budget, Cap, Every, Meter, Window, check_dimension
from ._holds import Bucket, Fit, Held, Hold, OpenHold, Refused, Reservation, Ticket
from ._journal import Kind, Record, Settlement, Sum
from ._ledger import Ledger, SharedLedger
from ._report import CapStatus, Report, ReportRow, Tree
from ._routing import SLA, Candidate, Decision

__all__ = [
    "SLA",
    "UNATTRIBUTED",
    "Alert",
    "Attribution",
    "Bucket",
    "Budget",
    "Call",
    "Candidate",
    "Cap",
    "CapStatus",
    "Cost",
    "CostLine",
    "Decision",
    "Every",
    "Fit",
    "Held",
    "Hold",
    "Kind",
    "Ledger",
    "Meter",
    "Note",
    "OpenHold",
    "Record",
    "Refused",
    "Report",
    "ReportRow",
    "Reservation",
    "Settlement",
    "SharedLedger",
    "Step",
    "Sum",
    "Ticket",
    "Tree",
    "Window",
    "check_dimension",
    "new_key",
]
