"""What `endoreward shim` prints: files of frameworks' own, none of which this program imports."""
