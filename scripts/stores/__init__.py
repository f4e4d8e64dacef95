"""Object stores: outputs published below an executor's `output_root` that is a URL, inputs fetched from there."""
