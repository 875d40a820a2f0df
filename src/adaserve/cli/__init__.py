"""The command line: one entry point, `adaserve`, and a module a command."""
