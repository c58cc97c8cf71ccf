"""Checks a data set before training: what is in it, what is wrong with it, and what training would
do with it."""

from ray_gen.data.check.checking import Checked, check
from ray_gen.data.check.findings import Findings
from ray_gen.data.check.look import Looking
from ray_gen.data.check.outlook import Asked
from ray_gen.data.check.page import page
from ray_gen.data.check.reading import Contents, Progress, looked_at, row_group
from ray_gen.data.check.told import as_json, in_words

__all__ = [
    "Asked",
    "Checked",
    "Contents",
    "Findings",
    "Looking",
    "Progress",
    "as_json",
    "check",
    "in_words",
    "looked_at",
    "page",
    "row_group",
]
