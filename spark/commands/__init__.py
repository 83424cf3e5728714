"""One file per command of the `spark` command line."""
