"""What connects handlers with other tools. Each module needs the extra of its name."""
