"""One workspace, one model and its jobs: what every front end opens."""
