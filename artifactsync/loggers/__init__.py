"""Where metrics and text go: files, the console, experiment trackers."""
