"""File layouts of adapters: ours, PEFT's, and the originals' deltas, prefixes and soft prompts."""
