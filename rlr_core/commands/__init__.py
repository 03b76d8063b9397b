"""The subcommands of `rlr`. Each is a function that adds its parser; cli.py lists them."""
