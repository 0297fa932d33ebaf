"""Features and scores of new images: in shards, in image files, or in memory."""
