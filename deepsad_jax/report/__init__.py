"""Pages that people look at: one file each, which needs neither network nor server."""
