"""Scores generations that exist: `python tools/score.py FILE.jsonl --task gsm8k --scorer strict`; `--help` explains."""

from lift_ds.cli.score import main

if __name__ == "__main__":
    main()
