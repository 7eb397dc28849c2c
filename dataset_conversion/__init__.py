"""One script per source that teams have on disk: `ctnet convert SOURCE`, or run the file itself."""
