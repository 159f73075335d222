"""The run room: everything that brings Giovang up, watches it and measures it."""
