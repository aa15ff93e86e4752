"""Adapts: `python tools/make_diffusion_model.py SOURCE OUTPUT`; `--help` explains the flags."""

from lift_ds.cli.make_diffusion_model import main

if __name__ == "__main__":
    main()
