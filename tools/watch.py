"""Watches runs: `python tools/watch.py RUN [RUN...]`; `--help` explains the flags."""

from lift_ds.cli.watch import main

if __name__ == "__main__":
    main()
