"""The run config, assembled from the rooms' settings; DeepSpeed's JSON; the loading of both."""
