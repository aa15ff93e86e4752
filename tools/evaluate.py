"""Evaluates a model: `python tools/evaluate.py --model MODEL --tasks gsm8k`; `--help` explains the flags."""

from lift_ds.cli.evaluate import main

if __name__ == "__main__":
    main()
