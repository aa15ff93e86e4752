"""Reports runs as a page: `python tools/report.py RUN [RUN...]`; `--help` explains the flags."""

from lift_ds.cli.report import main

if __name__ == "__main__":
    main()
