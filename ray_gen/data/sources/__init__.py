"""Where images come from; each source is one file and imports its library only when it is read."""
