"""The bridge engine with real Megatron-Bridge, in an environment of its own (`make bridged`)."""
