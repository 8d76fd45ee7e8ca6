"""What a run leaves for people: a side-by-side video, a still, a preview, and one self-contained page.

Importing this package loads no plotting, imaging or video library; `write_report` loads them when it is called.
Start reading at `worldkv.report.write`.
"""

from worldkv.report.figures import PolicyFigures, policy_figures
from worldkv.report.labels import binary_size, policy_label
from worldkv.report.write import ReportFiles, write_report

__all__ = [
    "PolicyFigures",
    "ReportFiles",
    "binary_size",
    "policy_figures",
    "policy_label",
    "write_report",
]
