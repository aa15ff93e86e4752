"""Reports learnability: `python tools/learnability.py RUN_OR_MODEL --data ...`; `--help` explains the flags."""

from lift_ds.cli.learnability import main

if __name__ == "__main__":
    main()
