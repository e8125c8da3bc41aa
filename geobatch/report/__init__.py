"""The report: one HTML file that shows what a scored survey looks like and what its run did."""

from geobatch.report.html import write_report
from geobatch.report.sections import SectionChoice

__all__ = ["SectionChoice", "write_report"]
