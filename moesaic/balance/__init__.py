"""Keep experts evenly loaded: losses, the bias step, and what to watch. None acts unless asked."""
