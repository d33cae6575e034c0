"""Results as one HTML file that a colleague can open, explore and cite."""

from vlm_patching.reports.writing import Report, report

__all__ = ["Report", "report"]
