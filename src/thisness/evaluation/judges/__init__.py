"""Judges: who says how good a picture is. Used as metrics are; see docs/judges.md."""

from .agreement import kendall_tau, krippendorff_alpha, rank_agreement
from .arithmetic import ProtocolTable, Rated, Share, protocol_table, read_recorded
from .column import Column, Failure
from .registry import JUDGES, announce, make_judge, make_judges

__all__ = [
    "JUDGES",
    "Column",
    "Failure",
    "ProtocolTable",
    "Rated",
    "Share",
    "announce",
    "kendall_tau",
    "krippendorff_alpha",
    "make_judge",
    "make_judges",
    "protocol_table",
    "rank_agreement",
    "read_recorded",
]
