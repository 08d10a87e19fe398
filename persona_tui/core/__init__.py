"""What everything stands on: errors, settings, files, jobs, mixes, statistics. No torch."""
