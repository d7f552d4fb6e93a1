"""The texts that come with the toolkit: prose to judge models by, and other prose to fit scales to.

Both were written for this project and are under its licence, so no model has been trained on them. Out: paths, which is what a person
would have given. Used where a command is given no text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["CALIBRATION", "EVALUATION"]

_DATA: Final = Path(__file__).parents[1] / "data"
EVALUATION: Final = _DATA / "evaluation.txt"
CALIBRATION: Final = _DATA / "calibration.txt"
