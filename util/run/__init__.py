"""What belongs to one run on disk: checkpoints, resuming, stopping, warnings, logs and pages."""
