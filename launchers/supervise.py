"""Keeps a run going: `python launchers/supervise.py --output runs/long -- deepspeed launchers/train.py ...`."""

from lift_ds.cli.supervise import main

if __name__ == "__main__":
    main()
