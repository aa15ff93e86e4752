"""What a run will need: `python tools/plan.py --model 8b --ds ds_configs/zero3.json`; `--help` explains."""

from lift_ds.cli.plan import main

if __name__ == "__main__":
    main()
