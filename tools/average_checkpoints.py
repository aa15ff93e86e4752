"""Averages: `python tools/average_checkpoints.py CHECKPOINT... OUT`; `--help` explains the flags."""

from lift_ds.cli.average_checkpoints import main

if __name__ == "__main__":
    main()
