"""Answers prompts, or chats: `python tools/generate.py MODEL`; `--help` explains the flags."""

from lift_ds.cli.generate import main

if __name__ == "__main__":
    main()
