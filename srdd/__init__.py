"""Self-Referential Differential Diagnosis: find the faulty layer, operator and kind of fault on the machine
itself.
"""

import hal  # noqa: F401  -- must come before torch: it keeps a broken device extension from breaking the import
from srdd.report import Report, load_report
from srdd.scan import scan, scan_checkpoint

__all__ = ["Report", "load_report", "scan", "scan_checkpoint"]
