"""What a user is told about settings: `--help KEY`, `--print-config`, docs/configuration.md."""
