"""The parts of `gpu_check.py`, which compare runs and supernets with the helpers of the tests."""

import sys

from record import ROOT

if str(ROOT / "tests" / "support") not in sys.path:
    sys.path.append(str(ROOT / "tests" / "support"))
