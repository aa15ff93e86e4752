"""Trains: `deepspeed launchers/train.py --deepspeed ds_configs/zero3.json`; `--help` explains every key."""

from lift_ds.cli.train import main

if __name__ == "__main__":
    main()
