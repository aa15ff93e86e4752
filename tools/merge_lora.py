"""Merges: `python tools/merge_lora.py BASE ADAPTERS OUTPUT`; `--help` explains the flags."""

from lift_ds.cli.merge_lora import main

if __name__ == "__main__":
    main()
