"""What a run will need before its first step: arithmetic, memory, bytes on the wire, time."""
