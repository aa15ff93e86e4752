"""The verbs of `lift-ds`, which are also the command lines of launchers/ and tools/."""
