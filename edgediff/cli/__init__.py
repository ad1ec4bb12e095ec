"""The command ``edgediff``: one file a subcommand."""
