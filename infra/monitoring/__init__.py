"""What a run tells about itself: metrics, events, trackers, status and hardware."""
