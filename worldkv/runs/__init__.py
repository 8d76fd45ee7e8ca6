"""A run: worlds x policies, from a configuration to a folder with dataset, video, report and summary."""
