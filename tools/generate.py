"""Converts: `python tools/generate.py CHECKPOINT OUT`; `--help` explains the flags."""

from lift_ds.cli.generate import main

if __name__ == "__main__":
    main()
