"""The editor in a browser: scenes, sessions, the page, edit lists, the object library."""
