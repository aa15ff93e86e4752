"""Converts: `python tools/zero_to_hf.py CHECKPOINT OUT`; `--help` explains the flags."""

from lift_ds.cli.zero_to_hf import main

if __name__ == "__main__":
    main()
