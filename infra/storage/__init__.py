"""Files, locks, JSON and object stores."""
