"""Cuts for another number of ranks: `python tools/reshard.py CHECKPOINT RANKS OUT`; `--help` explains the flags."""

from lift_ds.cli.reshard import main

if __name__ == "__main__":
    main()
