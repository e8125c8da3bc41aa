"""Event windows as they come: where each one is, what is known of it, and a file on a bucket that reads like a local one."""
