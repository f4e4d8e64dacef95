"""Named places to run: files of profiles, merged and typed."""
