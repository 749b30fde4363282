"""Commands: python -m ap_detect.commands.<name>."""
