"""One module per subcommand; each offers a click command named like the subcommand."""
