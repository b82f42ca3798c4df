"""Images packed into tar shards, and the index by which they are read."""
