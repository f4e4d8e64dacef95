"""What a script's command line accepts: as plain data, from its source, and of every release from configs/upstream."""
