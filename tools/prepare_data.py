"""Checks a data set before a run: `python tools/prepare_data.py FILE --model ...`; `--help` explains the flags."""

from lift_ds.cli.prepare_data import main

if __name__ == "__main__":
    main()
