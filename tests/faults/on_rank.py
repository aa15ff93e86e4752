"""Gives a fault to one rank of a launch: `on_rank RANK FAULT ARGUMENTS...`; see `marked_train`."""

import os
import sys

from tests.faults.marked_train import main

rank, fault, *arguments = sys.argv[1:]
if fault and os.environ["RANK"] == rank:
    os.environ["FAULT"] = fault
sys.argv = ["launchers/train.py", *arguments]
main()
