"""Looks into a checkpoint: `python tools/inspect_checkpoint.py CHECKPOINT [OTHER]`; `--help` explains the flags."""

from lift_ds.cli.inspect_checkpoint import main

if __name__ == "__main__":
    main()
